//! Images: root file systems as tar files, and systems that boot by themselves. What a requester knows about one before it sends it, and a small one to try.

pub mod example;
pub mod known;

use std::{
    fs::File,
    io::{Read, Seek},
    path::{Path, PathBuf},
    sync::Arc,
};

use coalition::UniqueId;
use coalition_content::tree::Outline;
use coalition_host::image::{ImageError, Inspection};
use coalition_host::machine::bootable;

use crate::error::{CliError, Context, Result};

/// First bytes of a gzip stream.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What is known about an image file after reading it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The file, absolute.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// blake3 of its bytes: what a grant pins.
    pub hash: UniqueId,
    /// What proves its bytes slice by slice.
    pub outline: Arc<Outline>,
}

/// Hashes an image file, after checking that it can be one.
///
/// # Errors
/// [`Kind::Input`](crate::error::Kind::Input): missing, unreadable, no regular file, empty, larger than `max_bytes`, or no image.
pub fn read_facts(path: &Path, max_bytes: u64) -> Result<ImageFacts> {
    let shown = path.display();
    let unreadable = || format!("cannot read image {shown}");
    let meta = std::fs::metadata(path)
        .or_input("image_unreadable", unreadable)
        .map_err(|error| error.hint("`coalition image example hello.tar` makes a small image to try"))?;
    if !meta.is_file() {
        return Err(CliError::input("image_not_a_file", format!("image {shown} is not a file"))
            .hint(format!("pack the directory: `tar -C {shown} -cf image.tar .`")));
    }
    check_size(path, meta.len(), max_bytes)?;
    let mut file = File::open(path).or_input("image_unreadable", unreadable)?;
    let mut head = [0; 512];
    let read = fill(&mut file, &mut head).or_input("image_unreadable", unreadable)?;
    let boots = bootable::find(&mut file, meta.len())
        .or_input("image_not_bootable", || format!("image {shown} cannot be started"))?;
    if boots.is_none() && !looks_like_image(&head[..read]) {
        let message = format!("image {shown} is no tar, no gzipped tar, no raw disk and no unified kernel image");
        return Err(CliError::input("image_not_a_tar", message)
            .hint("an image is a root file system packed with `tar`; `coalition image inspect` says more"));
    }
    file.rewind().or_input("image_unreadable", unreadable)?;
    let outline = Outline::read(file, meta.len()).or_input("image_unreadable", unreadable)?;
    let path = std::path::absolute(path).or_input("image_unreadable", unreadable)?;
    Ok(ImageFacts { path, size_bytes: meta.len(), hash: outline.content().hash(), outline: Arc::new(outline) })
}

fn check_size(path: &Path, size_bytes: u64, max_bytes: u64) -> Result<()> {
    let shown = path.display();
    if size_bytes == 0 {
        return Err(CliError::input("image_empty", format!("image {shown} is empty")));
    }
    if size_bytes > max_bytes {
        let message = format!("image {shown} has {size_bytes} bytes, at most {max_bytes} are accepted");
        return Err(CliError::input("image_too_large", message)
            .hint("leave out what the workload does not need, or gzip it: `gzip -k image.tar`"));
    }
    Ok(())
}

/// Looks into an image the way a host will, so that nothing is sent that every host refuses.
///
/// # Errors
/// [`Kind::Input`](crate::error::Kind::Input) when it is damaged, empty, or has an entry hosts refuse.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let found = coalition_host::image::inspect(path).map_err(|error| {
        let hint = error.hint();
        let refused =
            CliError::input("image_damaged", format!("image {} cannot be used", path.display())).because(error);
        match hint {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    })?;
    match &found.refused {
        Some(reason) => {
            let message = format!("image {} has an entry every host refuses: {reason}", path.display());
            Err(CliError::input("image_refused", message)
                .hint("pack a plain root file system: `tar -C rootfs -cf image.tar .`"))
        }
        None => Ok(found),
    }
}

/// Writes the example image: one static busybox where there is one, else this machine's shell and tools with their
/// libraries.
///
/// # Errors
/// When the file cannot be written or this machine has nothing to make an image from.
pub fn make_example(path: &Path) -> Result<ExampleSource> {
    match coalition_host::image::make_example(path) {
        Ok(info) => Ok(ExampleSource::Busybox(info.source)),
        Err(ImageError::NoBusybox { .. }) => {
            let bytes = example::build()?;
            std::fs::write(path, bytes).or_fault("disk", || format!("cannot write {}", path.display()))?;
            Ok(ExampleSource::DynamicTools)
        }
        Err(error) => Err(CliError::fault("disk", "cannot make the example image").because(error)),
    }
}

/// What an example image was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExampleSource {
    /// This static busybox.
    Busybox(PathBuf),
    /// The machine's own tools.
    DynamicTools,
}

/// A gzip stream, or a tar header whose checksum is right.
fn looks_like_image(head: &[u8]) -> bool {
    if head.starts_with(&GZIP_MAGIC) {
        return true;
    }
    let Ok(block) = <&[u8; 512]>::try_from(head) else { return false };
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::error::Kind;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn sample_tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(2);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append_data(&mut header, "./bin/sh", &b"#!"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    fn code(path: &Path, max: u64) -> String {
        read_facts(path, max).unwrap_err().code().to_owned()
    }

    #[test]
    fn facts_of_a_tar_and_of_a_gzipped_one() {
        let tar = sample_tar();
        let (_dir, path) = file(&tar);
        let facts = read_facts(&path, 1 << 20).unwrap();
        assert_eq!((facts.size_bytes, facts.hash), (tar.len() as u64, UniqueId::hash(&tar)));
        let contents = inspect(&path).unwrap();
        assert!(!contents.gzip && contents.has_shell);
        assert_eq!(contents.blake3, facts.hash.to_string());

        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let (_dir, path) = file(&gzip.finish().unwrap());
        read_facts(&path, 1 << 20).unwrap();
        assert!(inspect(&path).unwrap().gzip);
    }

    #[test]
    fn the_example_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello.tar");
        make_example(&path).unwrap();
        assert!(inspect(&path).unwrap().has_shell);
    }

    #[test]
    fn systems_that_boot_are_images_and_other_disks_are_not() {
        let mut disk = vec![0; 1_024];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let (_dir, path) = file(&disk);
        read_facts(&path, 1 << 20).unwrap();
        let contents = inspect(&path).unwrap();
        assert_eq!(contents.boots, Some(bootable::Bootable::Disk(bootable::Table::Mbr)));
        assert_eq!(contents.disk_bytes, 1_024);

        let (_dir, path) = file(b"QFI\xfb and so on");
        let error = read_facts(&path, 1 << 20).unwrap_err();
        assert_eq!((error.code(), error.kind()), ("image_not_bootable", Kind::Input));
        assert!(format!("{error:?}").contains("qcow2"), "{error:?}");
    }

    #[test]
    fn what_cannot_be_an_image_is_refused_and_named() {
        let (dir, path) = file(&[7; 600]);
        assert_eq!(code(&path, 1_000), "image_not_a_tar");
        assert_eq!(code(&path, 599), "image_too_large");
        assert_eq!(code(dir.path(), 1_000), "image_not_a_file");
        assert_eq!(code(&dir.path().join("none"), 1_000), "image_unreadable");
        let (_dir, path) = file(b"");
        assert_eq!(code(&path, 1_000), "image_empty");
        let (_dir, path) = file(b"short");
        assert_eq!(code(&path, 1_000), "image_not_a_tar");
        let (_dir, path) = file(&sample_tar()[..700]);
        assert_eq!(inspect(&path).unwrap_err().kind(), Kind::Input);
    }
}
