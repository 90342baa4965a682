//! The guest's initial file system: a `newc` archive of this program as `/init`, the libraries it is linked with, and the
//! kernel modules the guest's devices need. The same program and modules make the same bytes, which is what lets a TDX
//! guest's measurements be predicted.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Result, RunnerError};

/// Modules the guest's devices need, unless its kernel has them built in.
const WANTED: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "ext4"];
/// Where the guest finds modules, named in the order they are to be loaded.
pub const MODULE_DIR: &str = "modules";
/// Kernel module files, compressed or not, are smaller than this.
const MAX_MODULE: u64 = 64 << 20;

/// A `newc` archive being written.
struct Cpio {
    bytes: Vec<u8>,
    next: u32,
    directories: BTreeSet<PathBuf>,
}

impl Cpio {
    fn new() -> Self {
        Self { bytes: Vec::new(), next: 1, directories: BTreeSet::new() }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) -> Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| RunnerError::Environment(format!("{name} is too large for an initial file system")))?;
        let fields = [
            self.next,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.next += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        let above: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        for dir in above.into_iter().rev() {
            if self.directories.insert(dir.into()) {
                self.entry(&dir.to_string_lossy(), 0o040_755, b"", (0, 0))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, data: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(&path.to_string_lossy(), 0o100_755, data, (0, 0))
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, b"", (0, 0))?;
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(self.bytes)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| RunnerError::io(format!("cannot read {}", path.display()), e))
}

/// The archive. `modules` is the kernel's directory below `/lib/modules`, or none when everything is built in.
///
/// # Errors
/// [`RunnerError`] when a file cannot be read.
pub fn build(program: &Path, libraries: &[PathBuf], modules: Option<&Path>) -> Result<Vec<u8>> {
    let mut archive = Cpio::new();
    for dir in ["dev", "grant", "new", "proc", "sys", "tmp"] {
        archive.directory(Path::new(dir))?;
    }
    archive.entry("dev/console", 0o020_600, b"", (5, 1))?;
    archive.entry("dev/null", 0o020_666, b"", (1, 3))?;
    archive.file(Path::new("init"), &read(program)?)?;
    let mut libraries = libraries.to_vec();
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        archive.file(library.strip_prefix("/").unwrap_or(&library), &read(&library)?)?;
    }
    if let Some(dir) = modules {
        for (number, module) in module_files(dir)?.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(Path::new(&format!("{MODULE_DIR}/{number:03}-{name}")), &module_bytes(module)?)?;
        }
    }
    archive.finish()
}

fn module_bytes(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    if size > MAX_MODULE {
        return Err(RunnerError::Environment(format!("{} has {size} bytes; no kernel module does", path.display())));
    }
    read(path)
}

/// Files of the wanted modules and of what they depend on, in loading order, by the kernel's `modules.dep`.
fn module_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let path = dir.join("modules.dep");
    let text = fs::read_to_string(&path).map_err(|e| {
        let hint = if e.kind() == io::ErrorKind::NotFound { " (run `depmod`)" } else { "" };
        RunnerError::io(format!("cannot read {}{hint}", path.display()), e)
    })?;
    Ok(loading_order(&text).into_iter().map(|file| dir.join(file)).collect())
}

/// Loading order from the text of a `modules.dep`: each line a module and what it needs, nearest first. A wanted module
/// that is not in it is built in, or missing, which the guest will say.
fn loading_order(text: &str) -> Vec<&str> {
    let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let mut order: Vec<&str> = Vec::new();
    for wanted in WANTED {
        let Some((file, needs)) = lines.iter().find(|(file, _)| module_name(file) == wanted) else { continue };
        for next in needs.split_ascii_whitespace().rev().chain([*file]) {
            if !order.contains(&next) {
                order.push(next);
            }
        }
    }
    order
}

/// `virtio_rng` for `kernel/drivers/char/hw_random/virtio-rng.ko.xz`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let text = "kernel/a/virtio_ring.ko: kernel/a/virtio.ko\n\
                    kernel/a/virtio_pci.ko: kernel/a/modern.ko kernel/a/virtio_ring.ko kernel/a/virtio.ko\n\
                    kernel/b/virtio-rng.ko.xz: kernel/a/virtio_ring.ko kernel/a/virtio.ko\nkernel/x.ko:\n";
        let names: Vec<String> = loading_order(text).iter().map(|file| module_name(file)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "modern", "virtio_pci", "virtio_rng"]);
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        let temp = tempfile::tempdir().unwrap();
        let (program, library) = (temp.path().join("p"), temp.path().join("l.so"));
        fs::write(&program, b"program").unwrap();
        fs::write(&library, b"library").unwrap();
        let one = build(&program, &[library.clone(), library.clone()], None).unwrap();
        assert_eq!(one, build(&program, &[library], None).unwrap());
        assert!(one.starts_with(b"070701") && one.len().is_multiple_of(512));
        let names = one.windows(6).filter(|w| *w == b"070701").count();
        let above = temp.path().components().filter(|part| part.as_os_str() != "tmp").count() - 1;
        assert_eq!(
            names,
            6 + 2 + 1 + above + 1 + 1,
            "directories, devices, init, the library and those above it, the end"
        );
        assert!(build(&temp.path().join("none"), &[], None).is_err());
    }
}
