//! Images in a store, end to end: pushed once, served after the requester's process is gone, and through kills of either side.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Instant,
};

use common::{
    Environment,
    running::{PATIENCE, Up, alone, logs},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A tar of so many bytes that hosts would take.
fn large(env: &Environment, name: &str, bytes: u64, seed: u8) -> PathBuf {
    let path = env.path().join(name);
    let mut tar = tar::Builder::new(std::io::BufWriter::new(std::fs::File::create(&path).unwrap()));
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes);
    header.set_mode(0o644);
    let block: Vec<u8> = (0..MIB).map(|i| u8::try_from((i / 7) % 251).unwrap() ^ seed).collect();
    let content = std::io::Read::take(Repeated { block, at: 0 }, bytes);
    tar.append_data(&mut header, "./data", content).unwrap();
    tar.finish().unwrap();
    path
}

/// One block again and again.
struct Repeated {
    block: Vec<u8>,
    at: usize,
}

impl std::io::Read for Repeated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.block.len() - self.at);
        buffer[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at = (self.at + count) % self.block.len();
        Ok(count)
    }
}

fn push(env: &Environment, file: &Path) -> Value {
    let ran = env.run(&["--json", "image", "push", file.to_str().unwrap()]).expect_status(0);
    ran.json()
}

fn start_push(env: &Environment, file: &Path) -> Child {
    let mut command = env.command(&["--json", "image", "push", file.to_str().unwrap()]);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until so many bytes of an upload are on the store's disk, and the push still runs.
fn wait_for_upload(env: &Environment, bytes: u64, pushing: &mut Child) {
    let dir = env.home().join("data/store/partial");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let files = std::fs::read_dir(&dir).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
        if files.map(|meta| meta.blocks() * 512).sum::<u64>() >= bytes {
            return;
        }
        assert!(pushing.try_wait().unwrap().is_none(), "the push ended before it was to be cut");
        assert!(Instant::now() < deadline, "nothing arrives: {}", logs(&env.home()));
        std::thread::yield_now();
    }
}

#[test]
fn a_pushed_image_is_served_after_the_requester_has_gone() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    env.run(&["image", "example", "hello.tar"]).expect_status(0);
    let original = std::fs::read(env.path().join("hello.tar")).unwrap();
    let pushed = push(&env, Path::new("hello.tar"));
    let hash = pushed["blake3"].as_str().unwrap().to_owned();
    assert_eq!(pushed["sent_bytes"], original.len());
    let again = push(&env, Path::new("hello.tar"));
    assert_eq!((&again["sent_bytes"], &again["there_bytes"]), (&0.into(), &original.len().into()));

    // By hash, from a machine that has no such file, and nobody stays to serve it.
    std::fs::remove_file(env.path().join("hello.tar")).unwrap();
    let small = ["--cpu", "250m", "--ram", "64MiB", "--for", "10m", "--max-rate", "1"];
    let detached = [&["--json", "request", "--image", &hash, "--detach"], &small[..]].concat();
    let cleared = env.run(&detached).expect_status(0).json();
    assert_eq!(cleared["step"], "cleared");
    let grant = cleared["grant"].as_str().unwrap();
    let ready = env.run(&["--json", "wait", grant]).expect_status(0).json();
    assert_eq!((&ready["ready"], &ready["grant"]), (&true.into(), &grant.into()));
    env.run(&["ssh", grant, "--", "true"]).expect_status(0);
    env.run(&["--json", "wait", grant]).expect_status(0);
    let kept: Vec<_> = std::fs::read_dir(env.home().join("grants").join(grant)).unwrap().collect();
    assert!(kept.iter().all(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("pending")));
    env.run(&["end", grant, "--wait", "2m"]).expect_status(0);

    // What is listed, fetched and given up.
    let listed = env.run(&["--json", "image", "ls"]).expect_status(0).json();
    let images = listed["stores"][0]["images"].as_array().unwrap();
    assert_eq!(
        (images.len(), &images[0]["blake3"], &images[0]["name"]),
        (1, &hash.as_str().into(), &"hello.tar".into())
    );
    env.run(&["image", "pull", &hash, "copy.tar"]).expect_status(0);
    assert!(std::fs::read(env.path().join("copy.tar")).unwrap() == original);
    assert_eq!(
        env.run(&["--json", "image", "pull", &hash, "copy.tar"]).expect_status(7).json()["error"]["code"],
        "file_exists"
    );
    assert_eq!(env.run(&["--json", "image", "gc"]).expect_status(0).json()["removed"], Value::Array(vec![]));
    env.run(&["image", "rm", &hash[..8]]).expect_status(0);
    assert_eq!(
        env.run(&["--json", "image", "rm", &hash[..8]]).expect_status(3).json()["error"]["code"],
        "unknown_image"
    );
    assert_eq!(env.run(&detached).expect_status(3).json()["error"]["code"], "image_not_stored");
    let file = [&["--json", "request", "--image", "copy.tar", "--detach"], &small[..]].concat();
    assert_eq!(env.run(&file).expect_status(3).json()["error"]["code"], "image_not_stored");

    // A kill of the push: the next one sends only what is missing.
    let first = large(&env, "first.tar", 160 * MIB, 1);
    let mut pushing = start_push(&env, &first);
    wait_for_upload(&env, 8 * MIB, &mut pushing);
    pushing.kill().unwrap();
    pushing.wait().unwrap();
    let resumed = push(&env, &first);
    let (there, sent) = (resumed["there_bytes"].as_u64().unwrap(), resumed["sent_bytes"].as_u64().unwrap());
    assert!(there >= 4 * MIB && there + sent == resumed["size_bytes"], "{resumed}");

    // A kill of the store: the push waits for it and goes on.
    let second = large(&env, "second.tar", 160 * MIB, 2);
    let mut pushing = start_push(&env, &second);
    wait_for_upload(&env, 8 * MIB, &mut pushing);
    let store = i32::try_from(up.said["roles"]["store"]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(store), Signal::SIGKILL).unwrap();
    let output = pushing.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), logs(&env.home()));
    let hash = push(&env, &second)["blake3"].as_str().unwrap().to_owned();
    env.run(&["image", "pull", &hash, "second-copy.tar"]).expect_status(0);
    assert!(std::fs::read(env.path().join("second-copy.tar")).unwrap() == std::fs::read(&second).unwrap());
    up.wait_told("the store to be back", |event| (event["role"] == "store" && event["event"] == "ready").then_some(()));
    up.stop();
}
