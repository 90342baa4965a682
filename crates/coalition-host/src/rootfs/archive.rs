//! What kind of file an image is, told by its content, and the blobs of one that is an OCI archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ring::digest::{Context, SHA256};
use tar::EntryType;

use super::oci::{self, Blob, Digest, ImageConfig, MAX_DOCUMENT_BYTES, MAX_INDEXES, Next};
use crate::error::{Result, RunnerError};

/// Most blobs of one archive.
const MAX_BLOBS: usize = 65_536;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An OCI archive: where everything is in the file.
#[derive(Clone, Debug)]
struct OciArchive {
    layout: Option<(u64, u64)>,
    index: Option<(u64, u64)>,
    blobs: BTreeMap<Digest, (u64, u64)>,
}

/// An OCI image whose documents are read and verified; its layers are not yet.
#[derive(Clone, Debug)]
pub struct OciImage {
    archive: OciArchive,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Layers, lowest first, each with the digest of its unpacked tar.
    pub layers: Vec<(Blob, Digest)>,
}

fn wrong(image: &Path, problem: impl std::fmt::Display) -> RunnerError {
    RunnerError::ImageFormat { path: image.into(), problem: problem.to_string() }
}

/// The OCI image in a file, or none when it is something else (a root file system). Leaves the file's position anywhere.
///
/// # Errors
/// [`RunnerError::ImageFormat`] when it is an OCI archive and not a sound one, or Docker's older form.
pub fn find_oci(file: &mut File, image: &Path) -> Result<Option<OciImage>> {
    let Some(archive) = scan(file, image)? else { return Ok(None) };
    let read = |file: &mut File, at: Option<(u64, u64)>, name: &str| {
        let (from, size) = at.ok_or_else(|| wrong(image, format!("it has no {name}")))?;
        document(file, from, size).map_err(|e| wrong(image, format!("{name}: {e}")))
    };
    oci::check_layout(&read(file, archive.layout, "oci-layout")?).map_err(|e| wrong(image, e))?;
    let architecture = oci::own_architecture();
    let mut index = read(file, archive.index, "index.json")?;
    for _ in 0..MAX_INDEXES {
        match oci::choose(&index, architecture).map_err(|e| wrong(image, e))? {
            Next::Index(blob) => index = archive.document(file, image, blob)?,
            Next::Manifest(blob) => {
                let manifest = archive.document(file, image, blob)?;
                let manifest = oci::manifest(&manifest).map_err(|e| wrong(image, e))?;
                let config = archive.document(file, image, manifest.config)?;
                let (config, unpacked) = oci::config(&config, architecture).map_err(|e| wrong(image, e))?;
                if unpacked.len() != manifest.layers.len() {
                    let (named, has) = (unpacked.len(), manifest.layers.len());
                    return Err(wrong(image, format!("its config names {named} layers, its manifest {has}")));
                }
                let layers = manifest.layers.into_iter().zip(unpacked).collect();
                return Ok(Some(OciImage { archive, config, layers }));
            }
        }
    }
    Err(wrong(image, format!("its indexes are nested more than {MAX_INDEXES} deep")))
}

/// Finds the parts of an archive without reading contents. None when this is no OCI archive.
fn scan(file: &mut File, image: &Path) -> Result<Option<OciArchive>> {
    let mut head = [0; 2];
    file.rewind().map_err(|e| wrong(image, e))?;
    let got = file.read(&mut head).map_err(|e| wrong(image, e))?;
    file.rewind().map_err(|e| wrong(image, e))?;
    if got < 2 || head == GZIP {
        return Ok(None);
    }
    let mut found = OciArchive { layout: None, index: None, blobs: BTreeMap::new() };
    let (mut docker, mut repositories) = (false, false);
    let mut archive = tar::Archive::new(&mut *file);
    // Raw: the names that matter are short, so the extensions that announce long ones are of no interest.
    let Ok(entries) = archive.entries_with_seek() else { return Ok(None) };
    for entry in entries.raw(true) {
        // What is no archive at all is said by whoever unpacks it.
        let Ok(entry) = entry else { return Ok(None) };
        if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous) {
            continue;
        }
        let place = (entry.raw_file_position(), entry.size());
        let path = entry.path_bytes();
        let name = path.strip_prefix(b"./").unwrap_or(&path);
        match name {
            b"oci-layout" => found.layout = Some(place),
            b"index.json" => found.index = Some(place),
            b"manifest.json" => docker = true,
            b"repositories" => repositories = true,
            _ => {
                let hex = name.strip_prefix(b"blobs/sha256/").and_then(|hex| std::str::from_utf8(hex).ok());
                if let Some(digest) = hex.and_then(Digest::from_hex) {
                    found.blobs.insert(digest, place);
                }
            }
        }
        if found.blobs.len() > MAX_BLOBS {
            return Err(wrong(image, format!("it has more than {MAX_BLOBS} blobs")));
        }
    }
    if found.layout.is_none() && docker && repositories {
        let problem =
            "it is Docker's own older form; save it with Docker 25 or later, or `podman save --format oci-archive`";
        return Err(wrong(image, problem));
    }
    Ok((found.layout.is_some() && !found.blobs.is_empty()).then_some(found))
}

fn document(file: &mut File, from: u64, size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_DOCUMENT_BYTES {
        let text = format!("{size} bytes, at most {MAX_DOCUMENT_BYTES} are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::new();
    section(file, from, size)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn section(file: &mut File, from: u64, size: u64) -> io::Result<Take<&mut File>> {
    file.seek(SeekFrom::Start(from))?;
    Ok(file.take(size))
}

/// Hashes what passes through.
pub(super) struct Digesting<R> {
    inner: R,
    context: Context,
    read: u64,
}

impl<R: Read> Digesting<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, context: Context::new(&SHA256), read: 0 }
    }

    /// Reads the rest, and says how much there was and what it hashed to.
    pub(super) fn finish(mut self) -> io::Result<(u64, Digest)> {
        io::copy(&mut self, &mut io::sink())?;
        let mut out = [0; 32];
        out.copy_from_slice(self.context.finish().as_ref());
        Ok((self.read, Digest(out)))
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.context.update(&buf[..got]);
        self.read += got as u64;
        Ok(got)
    }
}

impl OciArchive {
    fn place(&self, image: &Path, blob: Blob) -> Result<u64> {
        let (from, size) =
            *self.blobs.get(&blob.digest).ok_or_else(|| wrong(image, format!("blob {} is missing", blob.digest)))?;
        if size != blob.size {
            return Err(wrong(image, format!("blob {} has {size} bytes, {} were announced", blob.digest, blob.size)));
        }
        Ok(from)
    }

    fn document(&self, file: &mut File, image: &Path, blob: Blob) -> Result<Vec<u8>> {
        let from = self.place(image, blob)?;
        let bytes = document(file, from, blob.size).map_err(|e| wrong(image, format!("blob {}: {e}", blob.digest)))?;
        let (_, actual) = Digesting::new(&bytes[..]).finish().map_err(|e| wrong(image, e))?;
        same(image, "blob", blob.digest, actual)?;
        Ok(bytes)
    }
}

fn same(image: &Path, what: &str, expected: Digest, actual: Digest) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    Err(wrong(image, format!("{what} {expected} is damaged: its bytes hash to {actual}")))
}

impl OciImage {
    /// Reads one layer, verified: `look` gets the unpacked tar and must not be believed before this returns. At most
    /// `limit` unpacked bytes are handed out.
    ///
    /// # Errors
    /// [`RunnerError::ImageFormat`] when the layer's bytes are not the announced ones; whatever `look` says.
    pub fn read_layer<T>(
        &self,
        file: &mut File,
        image: &Path,
        layer: usize,
        limit: u64,
        look: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        let (blob, unpacked) = self.layers[layer];
        let from = self.archive.place(image, blob)?;
        let failed = |e: io::Error| wrong(image, format!("layer {}: {e}", blob.digest));
        let mut head = [0; 2];
        section(file, from, blob.size).and_then(|mut s| s.read(&mut head)).map_err(failed)?;
        let source = section(file, from, blob.size).map_err(failed)?;
        let mut packed = Digesting::new(io::BufReader::with_capacity(1 << 18, source));
        let plain: Box<dyn Read + '_> =
            if head == GZIP { Box::new(MultiGzDecoder::new(&mut packed)) } else { Box::new(&mut packed) };
        let mut plain = Digesting::new(plain.take(limit));
        let found = look(&mut plain)?;
        let (read, actual) = plain.finish().map_err(failed)?;
        if read >= limit {
            return Err(wrong(image, format!("layer {} unpacks to more than {limit} bytes", blob.digest)));
        }
        let (_, packed) = packed.finish().map_err(failed)?;
        same(image, "layer", blob.digest, packed)?;
        same(image, "unpacked layer", unpacked, actual)?;
        Ok(found)
    }
}
