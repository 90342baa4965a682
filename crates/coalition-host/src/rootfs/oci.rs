//! The documents of an OCI image: layout, index, manifest and config, parsed into what a host needs of them. Pure.
//!
//! Sources: OCI image-spec 1.1 (image-layout, image-index, manifest, config), and the Docker media types that it names as
//! equal. Fields that the specification does not know are ignored, as it demands.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// Largest index, manifest or config that is read, bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Most layers of one image.
const MAX_LAYERS: usize = 512;
/// Deepest nesting of indexes.
pub const MAX_INDEXES: usize = 4;

/// A document that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    /// It is no JSON of its kind.
    #[error("its {what} is not readable: {problem}")]
    Unreadable {
        /// Which document.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A digest that is not SHA-256.
    #[error("digest {0:?} is not \"sha256:\" and 64 lower-case hex digits; other algorithms are not read")]
    Digest(String),
    /// Another layout version.
    #[error("its layout version is {0:?}, \"1.0.0\" is read")]
    Layout(String),
    /// Not exactly one image for this machine.
    #[error("it holds {found} images for linux/{wanted}, exactly one is needed; archive one image, for one platform")]
    Images {
        /// How many.
        found: usize,
        /// The architecture looked for, in OCI's words.
        wanted: String,
    },
    /// An image of another machine.
    #[error("the image is for {actual}, this host is linux/{wanted}")]
    Platform {
        /// What its config says.
        actual: String,
        /// What is here.
        wanted: String,
    },
    /// A layer of a kind that is not unpacked.
    #[error(
        "a layer is of type {0:?}; plain and gzipped tar layers are unpacked (`podman push --compression-format gzip`)"
    )]
    LayerType(String),
    /// Too many of something, or too few.
    #[error("{0}")]
    Shape(String),
}

/// A SHA-256 digest of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Parses `sha256:` and 64 lower-case hex digits.
    ///
    /// # Errors
    /// [`OciError::Digest`].
    pub fn parse(text: &str) -> Result<Self, OciError> {
        let wrong = || OciError::Digest(text.chars().take(100).collect());
        Self::from_hex(text.strip_prefix("sha256:").ok_or_else(wrong)?).ok_or_else(wrong)
    }

    /// Parses 64 lower-case hex digits, as they stand in a blob's name.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        if hex.len() != 64 {
            return None;
        }
        for (to, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *to = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(out))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A reference to a blob: its digest and its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
}

/// What an index leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A manifest.
    Manifest(Blob),
    /// Another index.
    Index(Blob),
}

/// A manifest: a config and the layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The config.
    pub config: Blob,
    /// The layers.
    pub layers: Vec<Blob>,
}

/// What an image says about itself and how it wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Entrypoint and command, joined; empty for none.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Directory the command starts in; none for the user's home.
    pub workdir: Option<String>,
    /// `user[:group]`, names or numbers; none for root.
    pub user: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLayout {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct RawPlatform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawIndex {
    manifests: Vec<RawDescriptor>,
}

#[derive(Deserialize)]
struct RawManifest {
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|e| OciError::Unreadable { what, problem: e.to_string() })
}

impl RawDescriptor {
    fn blob(&self) -> Result<Blob, OciError> {
        Ok(Blob { digest: Digest::parse(&self.digest)?, size: self.size })
    }

    fn is_index(&self) -> bool {
        self.media_type.ends_with("image.index.v1+json") || self.media_type.ends_with("manifest.list.v2+json")
    }

    /// Provenance and the like, which builders put beside images.
    fn is_attestation(&self) -> bool {
        let kind = self.annotations.as_ref().and_then(|all| all.get("vnd.docker.reference.type"));
        kind.is_some() || self.platform.as_ref().is_some_and(|p| p.os == "unknown")
    }

    fn fits(&self, architecture: &str) -> bool {
        self.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture)
    }
}

/// The architecture of this machine, in OCI's words.
#[must_use]
pub fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Checks `oci-layout`.
///
/// # Errors
/// [`OciError::Unreadable`], [`OciError::Layout`].
pub fn check_layout(bytes: &[u8]) -> Result<(), OciError> {
    let layout: RawLayout = json("oci-layout", bytes)?;
    if layout.image_layout_version == "1.0.0" { Ok(()) } else { Err(OciError::Layout(layout.image_layout_version)) }
}

/// The one image of an index that is for `architecture`.
///
/// # Errors
/// [`OciError`]; [`OciError::Images`] when there is none or more than one.
pub fn choose(bytes: &[u8], architecture: &str) -> Result<Next, OciError> {
    let index: RawIndex = json("index", bytes)?;
    let mut fit = index.manifests.iter().filter(|m| !m.is_attestation() && m.fits(architecture));
    match (fit.next(), fit.count()) {
        (Some(one), 0) if one.is_index() => Ok(Next::Index(one.blob()?)),
        (Some(one), 0) => Ok(Next::Manifest(one.blob()?)),
        (first, more) => {
            Err(OciError::Images { found: usize::from(first.is_some()) + more, wanted: architecture.into() })
        }
    }
}

/// A manifest whose layers can all be unpacked.
///
/// # Errors
/// [`OciError`].
pub fn manifest(bytes: &[u8]) -> Result<Manifest, OciError> {
    let raw: RawManifest = json("manifest", bytes)?;
    if raw.layers.is_empty() || raw.layers.len() > MAX_LAYERS {
        return Err(OciError::Shape(format!("it has {} layers, 1 to {MAX_LAYERS} are unpacked", raw.layers.len())));
    }
    let tar = |kind: &str| {
        matches!(
            kind,
            "application/vnd.oci.image.layer.v1.tar"
                | "application/vnd.oci.image.layer.v1.tar+gzip"
                | "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        )
    };
    if let Some(other) = raw.layers.iter().find(|layer| !tar(&layer.media_type)) {
        return Err(OciError::LayerType(other.media_type.clone()));
    }
    let layers = raw.layers.iter().map(RawDescriptor::blob).collect::<Result<_, _>>()?;
    Ok(Manifest { config: raw.config.blob()?, layers })
}

/// A config, and the digests of its layers once unpacked, lowest first.
///
/// # Errors
/// [`OciError`]; [`OciError::Platform`] when it is for another machine than `architecture`.
pub fn config(bytes: &[u8], architecture: &str) -> Result<(ImageConfig, Vec<Digest>), OciError> {
    let raw: RawConfig = json("config", bytes)?;
    if raw.os != "linux" || raw.architecture != architecture {
        let actual = format!("{}/{}", raw.os, raw.architecture);
        return Err(OciError::Platform { actual, wanted: architecture.into() });
    }
    let run = raw.config.unwrap_or_default();
    let mut command = run.entrypoint.unwrap_or_default();
    command.extend(run.cmd.unwrap_or_default());
    let mut env = BTreeMap::new();
    for line in run.env.unwrap_or_default() {
        let (name, value) = line.split_once('=').unwrap_or((&line, ""));
        // A variable that no shell could set is of no use inside.
        if crate::spec::check_env(name, value).is_ok() {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    let bytes = command.iter().chain(env.values()).map(String::len).sum::<usize>();
    if bytes > 96 * 1024 || command.iter().any(|word| word.contains('\0')) {
        return Err(OciError::Shape(format!("its command and environment have {bytes} bytes or a zero byte")));
    }
    let text = |value: Option<String>| value.filter(|v| !v.is_empty() && v.len() <= 4096 && !v.contains('\0'));
    let config = ImageConfig { command, env, workdir: text(run.working_dir), user: text(run.user) };
    let unpacked = raw.rootfs.diff_ids.iter().map(|id| Digest::parse(id)).collect::<Result<_, _>>()?;
    Ok((config, unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn entry(more: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{HEX}","size":7{more}}}"#
        )
    }

    fn chosen(entries: &[String]) -> Result<Next, OciError> {
        choose(format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")).as_bytes(), "amd64")
    }

    #[test]
    fn the_one_image_for_this_machine_is_chosen() {
        let amd = entry(r#","platform":{"architecture":"amd64","os":"linux"}"#);
        let arm = entry(r#","platform":{"architecture":"arm64","os":"linux"}"#);
        let proof = entry(r#","platform":{"architecture":"unknown","os":"unknown"}"#);
        let blob = Blob { digest: Digest::from_hex(HEX).unwrap(), size: 7 };
        assert_eq!(chosen(&[amd.clone(), arm.clone(), proof]).unwrap(), Next::Manifest(blob));
        assert_eq!(chosen(&[entry("")]).unwrap(), Next::Manifest(blob));
        for (entries, found) in [(vec![arm], 0), (vec![amd.clone(), amd], 2), (vec![], 0)] {
            assert_eq!(chosen(&entries).unwrap_err(), OciError::Images { found, wanted: "amd64".into() });
        }
    }

    #[test]
    fn configs_say_how_to_run_and_for_which_machine() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{HEX}"]}},
            "config":{{"Entrypoint":["/bin/a"],"Cmd":["b"],"Env":["X=1=2","bad name=3"],"WorkingDir":"/w","User":"9:9"}}}}"#
        );
        let (found, ids) = config(text.as_bytes(), "amd64").unwrap();
        assert_eq!(found.command, ["/bin/a", "b"]);
        assert_eq!(found.env, BTreeMap::from([("X".to_owned(), "1=2".to_owned())]));
        assert_eq!((found.workdir.as_deref(), found.user.as_deref(), ids.len()), (Some("/w"), Some("9:9"), 1));
        assert!(matches!(config(text.as_bytes(), "arm64"), Err(OciError::Platform { .. })));
    }

    #[test]
    fn digests_are_strict() {
        assert_eq!(Digest::parse(&format!("sha256:{HEX}")).unwrap().to_string(), format!("sha256:{HEX}"));
        for bad in
            [HEX.to_owned(), format!("sha512:{HEX}"), format!("sha256:{}", HEX.to_uppercase()), "sha256:é".into()]
        {
            assert!(matches!(Digest::parse(&bad), Err(OciError::Digest(_))), "{bad}");
        }
    }

    #[test]
    fn foreign_layers_are_refused_by_name() {
        let layer = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"sha256:{HEX}","size":1}}"#);
        let of = |kind: &str| manifest(format!(r#"{{"config":{},"layers":[{}]}}"#, entry(""), layer(kind)).as_bytes());
        assert_eq!(of("application/vnd.oci.image.layer.v1.tar+gzip").unwrap().layers.len(), 1);
        let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
        assert_eq!(of(zstd).unwrap_err(), OciError::LayerType(zstd.into()));
    }
}
