//! What a start finds on the disk, and tidies.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::files::{self, Layout, Named, named, tree_of};
use super::state::{Aside, Begun, Object, State};
use super::upload::Upload;
use crate::tree::Content;

/// Takes everything of before into an index; reads no content.
pub(super) fn all(layout: &Layout) -> io::Result<State> {
    let mut state = State::default();
    for name in names(&layout.objects())? {
        found_object(layout, &mut state, &name)?;
    }
    for name in names(&layout.partials())? {
        found_upload(layout, &mut state, &name)?;
    }
    for name in names(&layout.damaged())? {
        let meta = fs::metadata(layout.damaged().join(&name))?;
        let aside = Aside { bytes: meta.len(), since_ms: files::modified_ms(&meta) };
        state.damaged.insert(name.to_string_lossy().into_owned(), aside);
    }
    Ok(state)
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Takes content of before into the index. Data without its tree was never finished, and the other way round.
fn found_object(layout: &Layout, state: &mut State, name: &OsStr) -> io::Result<()> {
    let path = layout.objects().join(name);
    match named(name) {
        Named::Data(hash, None) => {
            let meta = fs::metadata(&path)?;
            let tree = fs::metadata(tree_of(&path)).map(|meta| meta.len()).ok();
            match Content::new(hash, meta.len()) {
                Ok(content) if tree == Some(content.tree_bytes()) => {
                    let owners = files::read_owners(&path);
                    state.objects.insert(hash, Object { content, owners, used_ms: files::modified_ms(&meta) });
                    Ok(())
                }
                // Cut short or grown by somebody else: as damaged as changed bytes.
                _ => {
                    tracing::error!(%hash, "a copy has lost its tree or its length; it is set aside and not served");
                    fs::rename(&path, layout.damaged().join(name))
                }
            }
        }
        Named::Beside(data) if !layout.objects().join(&data).exists() => files::remove(&path),
        Named::Data(..) | Named::Beside(_) | Named::Other => Ok(()),
    }
}

fn found_upload(layout: &Layout, state: &mut State, name: &OsStr) -> io::Result<()> {
    let path = layout.partials().join(name);
    match named(name) {
        Named::Data(hash, Some(size)) => {
            let Ok(content) = Content::new(hash, size) else { return files::remove_all(&path) };
            if state.objects.contains_key(&hash) {
                return files::remove_all(&path);
            }
            let meta = fs::metadata(&path)?;
            let begun = Begun {
                upload: Arc::new(Upload::open(&path, content)?),
                owners: files::read_owners(&path),
                used_ms: files::modified_ms(&meta),
            };
            state.uploads.insert(content, begun);
            Ok(())
        }
        Named::Beside(data) if !layout.partials().join(&data).exists() => files::remove(&path),
        Named::Data(..) | Named::Beside(_) | Named::Other => Ok(()),
    }
}
