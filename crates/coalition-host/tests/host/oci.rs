//! OCI archives as images: made here as `podman save --format oci-archive` and `docker save` make them, and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use coalition_host::error::Result;
use coalition_host::output::Stream;
use coalition_host::rootfs::{Owner, Unpacked, open_verified, unpack};
use coalition_host::{ExitOutcome, Phase, image};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::harness::{As, Host, await_some, text};

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One entry of a layer: path, kind, content or link target.
type Entry<'a> = (&'a str, tar::EntryType, &'a [u8]);

fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == tar::EntryType::Directory { 0o755 } else { 0o4755 });
        header.set_size(if link { 0 } else { content.len() as u64 });
        header.set_uid(0);
        header.set_gid(0);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        if link {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content);
        }
        header.set_cksum();
        tar.append(&header, if link { &[][..] } else { *content }).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// An archive, its parts open to be changed.
struct Archive {
    blobs: BTreeMap<String, Vec<u8>>,
    index: Value,
    more: Vec<(String, Vec<u8>)>,
}

impl Archive {
    fn blob(&mut self, bytes: Vec<u8>) -> (String, usize) {
        let (name, size) = (hex(&bytes), bytes.len());
        self.blobs.insert(name.clone(), bytes);
        (name, size)
    }

    fn new(layers: &[Vec<u8>], run: &Value, packed: bool) -> Self {
        let mut archive = Self { blobs: BTreeMap::new(), index: Value::Null, more: Vec::new() };
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": run,
            "rootfs": {"type": "layers", "diff_ids": ids}, "history": []});
        let (config, config_size) = archive.blob(config.to_string().into_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let (kind, bytes) = if packed {
                    ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(layer))
                } else {
                    ("application/vnd.oci.image.layer.v1.tar", layer.clone())
                };
                let (name, size) = archive.blob(bytes);
                json!({"mediaType": kind, "digest": format!("sha256:{name}"), "size": size})
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{config}"),
                "size": config_size}, "layers": layers});
        let (manifest, size) = archive.blob(manifest.to_string().into_bytes());
        archive.index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{manifest}"), "size": size}]});
        archive
    }

    fn bytes(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        self.blobs.iter().for_each(|(name, bytes)| put(&format!("blobs/sha256/{name}"), bytes));
        self.more.iter().for_each(|(name, bytes)| put(name, bytes));
        put("index.json", self.index.to_string().as_bytes());
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        tar.into_inner().unwrap()
    }
}

fn try_unpack(bytes: &[u8], disk_mib: u64, root: &Path) -> Result<Unpacked> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("image");
    fs::write(&path, bytes).unwrap();
    let hash = blake3::hash(bytes);
    unpack(open_verified(&path, bytes.len() as u64, &hash)?, &path, root, disk_mib, Owner::Ourselves)
}

fn refusal(bytes: &[u8], disk_mib: u64) -> (String, String) {
    let root = tempfile::tempdir().unwrap();
    let error = try_unpack(bytes, disk_mib, root.path()).unwrap_err();
    (error.code().to_owned(), error.to_string())
}

use tar::EntryType::{Block, Directory as D, Link as H, Regular as R, Symlink as S};

fn two_layers() -> [Vec<u8>; 2] {
    [
        layer(&[
            ("etc/", D, b""),
            ("etc/old", R, b"1"),
            ("etc/kept", R, b"2"),
            ("opt/", D, b""),
            ("opt/a/", D, b""),
            ("opt/a/deep", R, b"3"),
            ("opt/b", R, b"4"),
            ("was-dir/", D, b""),
            ("was-dir/x", R, b""),
            ("was-link", S, b"etc"),
            ("dev/sda", Block, b""),
        ]),
        layer(&[
            ("etc/.wh.old", R, b""),
            ("etc/new", H, b"etc/kept"),
            ("opt/own", R, b"5"),
            ("opt/.wh..wh..opq", R, b""),
            ("was-dir", R, b"file"),
            ("was-link/", D, b""),
            ("was-link/in", R, b""),
            ("etc/.wh.never-there", R, b""),
        ]),
    ]
}

#[test]
fn layers_are_laid_over_each_other_as_container_tools_do() {
    let run = json!({"Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["A=b"], "WorkingDir": "/opt", "User": "7"});
    for packed in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let found = try_unpack(&Archive::new(&two_layers(), &run, packed).bytes(), 8, root.path()).unwrap();
        let read = |path: &str| fs::read(root.path().join(path)).ok();
        assert_eq!((read("etc/old"), read("etc/new")), (None, Some(b"2".to_vec())), "a whiteout and a link to below");
        assert_eq!((read("opt/a/deep"), read("opt/b"), read("opt/own")), (None, None, Some(b"5".to_vec())), "opaque");
        assert_eq!(read("was-dir"), Some(b"file".to_vec()));
        assert!(fs::symlink_metadata(root.path().join("was-link")).unwrap().is_dir() && read("was-link/in").is_some());
        assert!(!root.path().join("dev/sda").exists() && fs::read_dir(root.path()).unwrap().flatten().count() == 4);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(root.path().join("etc/kept")).unwrap().permissions().mode() & 0o7777, 0o755, "set-uid");
        assert_eq!(found.config.command, ["/bin/app", "serve"]);
        assert_eq!((found.config.workdir.as_deref(), found.config.user.as_deref()), (Some("/opt"), Some("7")));
    }
}

#[test]
fn a_layer_that_points_outside_writes_nothing_there() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("mine"), b"x").unwrap();
    let to = outside.path().to_str().unwrap().as_bytes().to_vec();
    let below = layer(&[("out", S, &to), ("keep", R, b"")]);
    let attacks: [&[Entry<'_>]; 5] = [
        &[("out/new", R, b"x")],
        &[("../new", R, b"x")],
        &[("../.wh.mine", R, b"")],
        &[("hard", H, b"../../etc/passwd")],
        &[("disk", Block, b"")],
    ];
    for attack in attacks {
        let (code, text) = refusal(&Archive::new(&[below.clone(), layer(attack)], &json!({}), true).bytes(), 8);
        assert_eq!(code, "image_entry_refused", "{text}");
    }
    // Whiteouts behind a link hide nothing.
    let root = tempfile::tempdir().unwrap();
    let hiding = layer(&[("out/.wh.mine", R, b""), ("out/.wh..wh..opq", R, b"")]);
    try_unpack(&Archive::new(&[below, hiding], &json!({}), false).bytes(), 8, root.path()).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn every_damage_is_named() {
    let sound = || Archive::new(&two_layers(), &json!({}), true);
    type Damage = Box<dyn Fn(&mut Archive)>;
    let cases: Vec<(&str, Damage)> = vec![
        ("missing", Box::new(|a| drop(a.blobs.pop_first()))),
        (
            "damaged",
            Box::new(|a| {
                let bytes = a.blobs.values_mut().max_by_key(|bytes| bytes.len()).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }),
        ),
        ("announced", Box::new(|a| a.blobs.values_mut().for_each(|bytes| bytes.push(0)))),
        (
            "exactly one",
            Box::new(|a| {
                let first = a.index["manifests"][0].clone();
                a.index["manifests"].as_array_mut().unwrap().push(first);
            }),
        ),
        ("sha512", Box::new(|a| a.index["manifests"][0]["digest"] = json!("sha512:00"))),
        ("index", Box::new(|a| a.index = json!([]))),
    ];
    for (word, damage) in cases {
        let mut archive = sound();
        damage(&mut archive);
        let (code, text) = refusal(&archive.bytes(), 8);
        assert!(code == "image_not_an_archive" && text.contains(word), "{word}: {code} {text}");
    }
    // A layer that unpacks to something else than its config says.
    let mut archive = sound();
    let name = archive.index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
    let mut manifest: Value = serde_json::from_slice(&archive.blobs[&name]).unwrap();
    let (other, size) = archive.blob(gzip(&layer(&[("evil", R, b"x")])));
    manifest["layers"][1]["digest"] = json!(format!("sha256:{other}"));
    manifest["layers"][1]["size"] = json!(size);
    let (name, size) = archive.blob(manifest.to_string().into_bytes());
    archive.index["manifests"][0]["digest"] = json!(format!("sha256:{name}"));
    archive.index["manifests"][0]["size"] = json!(size);
    assert!(refusal(&archive.bytes(), 8).1.contains("unpacked layer"));
}

#[test]
fn bombs_and_older_forms_are_refused() {
    let zeros = vec![0_u8; 40 << 20];
    let bomb = Archive::new(&[layer(&[("bomb", R, &zeros)])], &json!({}), true).bytes();
    assert!(bomb.len() < 1 << 20);
    assert_eq!(refusal(&bomb, 8).0, "image_not_an_archive", "far beyond the disk it is not even read");
    assert_eq!(refusal(&bomb, 32).0, "image_too_large");
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["manifest.json", "repositories"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        tar.append_data(&mut header, name, &b"{}"[..]).unwrap();
    }
    assert!(refusal(&tar.into_inner().unwrap(), 8).1.contains("podman save --format oci-archive"));
}

/// What `docker save` adds is ignored, and an index may lead to another.
#[test]
fn nested_indexes_and_dockers_additions_are_taken() {
    let mut archive = Archive::new(&two_layers(), &json!({}), true);
    let inner = archive.index.to_string().into_bytes();
    let (name, size) = archive.blob(inner);
    archive.index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": format!("sha256:{name}"), "size": size}]});
    archive.more = vec![("manifest.json".into(), b"[]".to_vec()), ("repositories".into(), b"{}".to_vec())];
    let root = tempfile::tempdir().unwrap();
    assert!(try_unpack(&archive.bytes(), 8, root.path()).unwrap().entries > 10);
}

#[test]
fn a_grant_runs_its_image_as_the_image_says() {
    for host in [As::Root, As::User].into_iter().filter_map(Host::new) {
        let rootfs = fs::read(&host.image).unwrap();
        let more =
            layer(&[("srv/", D, b""), ("etc/passwd", R, b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/:/bin/sh\n")]);
        let run = json!({"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $COLOUR $PWD $(id -u):$(id -g); exit 5"],
            "Env": ["COLOUR=red"], "WorkingDir": "/srv", "User": "web"});
        let bytes = Archive::new(&[rootfs, more], &run, true).bytes();
        let path = host.temp.path().join("image.oci");
        fs::write(&path, &bytes).unwrap();
        let seen = image::inspect(&path).unwrap();
        assert!(seen.has_shell && seen.refused.is_none(), "{seen:?}");
        let oci = seen.oci.unwrap();
        assert_eq!((oci.layers, oci.config.workdir.as_deref()), (2, Some("/srv")));
        let grant = host.start(|spec| {
            spec.image = path.clone();
            spec.image_blake3 = blake3::hash(&bytes).to_hex().to_string();
            spec.image_size_bytes = bytes.len() as u64;
        });
        let exit =
            await_some("the workload's exit", std::time::Duration::from_secs(10), || match grant.status().phase {
                Phase::Ready { workload_exit, .. } => workload_exit,
                _ => None,
            });
        assert_eq!(exit, ExitOutcome::Code(5));
        let who = if host.kind == As::Root { "33:44" } else { "0:0" };
        let written = text(&grant.output(""), Stream::Stdout);
        assert_eq!(written, format!("red /srv {who}\n"), "{:?}", host.kind);
        assert_eq!(grant.ssh("echo $COLOUR").out, "red\n");
        let Phase::Ready { isolation, .. } = grant.status().phase else { panic!() };
        assert_eq!(isolation.losses.iter().any(|loss| loss.contains("\"web\"")), host.kind == As::User);
        grant.clean();
    }
}

#[test]
fn an_image_for_another_machine_says_so() {
    let mut archive = Archive::new(&[layer(&[("a", R, b"")])], &json!({}), false);
    archive.index["manifests"][0]["platform"] = json!({"architecture": "riscv64", "os": "linux"});
    let error = refusal(&archive.bytes(), 8).1;
    assert!(error.contains("0 images for linux/"), "{error}");
}
