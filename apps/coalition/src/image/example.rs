//! The example image of a machine without a static busybox: its own shell and tools with their libraries.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::error::{CliError, Context, Kind, Result};

/// Programs taken where this machine has them. The first is the shell, which it must have.
const PROGRAMS: [&str; 16] = [
    "sh", "ls", "cat", "echo", "uname", "id", "hostname", "env", "sleep", "date", "grep", "sed", "head", "tail",
    "nproc", "true",
];
const DIRECTORIES: [&str; 9] = ["bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr"];
const HELLO: &str = "#!/bin/sh\necho \"hello from $(hostname), $(uname -m), $(nproc) cpu\"\n";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n";
const GROUP: &str = "root:x:0:\n";

/// The image's bytes. The same machine always makes the same.
///
/// # Errors
/// [`Kind::Fault`] when this machine has no shell, or no `ldd` to find its libraries with.
pub(super) fn build() -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    dynamic_tools(&mut tree)?;
    tree.text("bin/hello", 0o755, HELLO);
    tree.text("etc/passwd", 0o644, PASSWD);
    tree.text("etc/group", 0o644, GROUP);
    tree.pack().or_fault("image", || "cannot pack the example image".into())
}

struct Node {
    mode: u32,
    bytes: Vec<u8>,
}

/// Files by path: sorted, so that the same machine always makes the same bytes.
#[derive(Default)]
struct Tree(BTreeMap<String, Node>);

impl Tree {
    fn program(&mut self, at: &str, from: &Path) -> Result<()> {
        let bytes = fs::read(from).or_fault("image", || format!("cannot read {}", from.display()))?;
        self.0.insert(at.to_owned(), Node { mode: 0o755, bytes });
        Ok(())
    }

    fn text(&mut self, at: &str, mode: u32, text: &str) {
        self.0.insert(at.to_owned(), Node { mode, bytes: text.as_bytes().to_vec() });
    }

    fn pack(&self) -> std::io::Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut directories: Vec<String> = DIRECTORIES.map(str::to_owned).to_vec();
        for path in self.0.keys() {
            let parents = Path::new(path).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
            directories.extend(parents.map(|parent| parent.to_string_lossy().into_owned()));
        }
        directories.sort();
        directories.dedup();
        for directory in directories {
            let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
            let mut header = header(tar::EntryType::Directory, mode, 0);
            builder.append_data(&mut header, format!("{directory}/"), std::io::empty())?;
        }
        for (path, node) in &self.0 {
            let mut header = header(tar::EntryType::Regular, node.mode, node.bytes.len() as u64);
            builder.append_data(&mut header, path, node.bytes.as_slice())?;
        }
        builder.into_inner()
    }
}

/// Owner, group and time are zero: the bytes depend on the content alone.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn dynamic_tools(tree: &mut Tree) -> Result<()> {
    let find = |name: &str| ["/bin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    let no_shell = || {
        CliError::new(
            Kind::Fault,
            "no_example",
            "this machine has no static busybox and no /bin/sh to make an example from",
        )
        .hint("install one: `apt-get install busybox-static`")
    };
    find(PROGRAMS[0]).ok_or_else(no_shell)?;
    for name in PROGRAMS {
        let Some(path) = find(name) else { continue };
        tree.program(&format!("bin/{name}"), &path)?;
        for library in libraries(&path).ok_or_else(no_shell)? {
            let at = library.to_string_lossy().trim_start_matches('/').to_owned();
            tree.program(&at, &library)?;
        }
    }
    Ok(())
}

/// The libraries `ldd` names; none for a static program.
fn libraries(program: &Path) -> Option<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Some(text.lines().filter_map(path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_of_this_machine_make_an_image_with_a_shell() {
        let first = build().unwrap();
        assert_eq!(build().unwrap(), first, "the same machine makes the same bytes");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello.tar");
        fs::write(&path, &first).unwrap();
        assert!(crate::image::inspect(&path).unwrap().has_shell);
        let mut tree = Tree::default();
        dynamic_tools(&mut tree).unwrap();
        assert!(tree.0.keys().any(|path| path.contains("libc.so") || path.contains("ld-")), "no libraries");
    }
}
