//! Full disks: every member has a small one of its own, in memory, that is filled under load and freed again.
//!
//! A member that cannot write must end and say which file and why; freed and started again, it must go on.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::{
    committee::Committee,
    namespaces::INSIDE,
    rng::Rng,
    schedule::{Outcome, pause, victims},
};

/// Enough for what a member of a long run stores.
const SIZE: &str = "size=320m";
/// Longest a full disk stays full.
const FULL_MS: usize = 2_500;

/// Runs this program where its mounts are its own and end with it.
pub fn run_inside() -> ExitCode {
    let program = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status();
    match status.map(|status| status.code()) {
        Ok(Some(0)) => ExitCode::SUCCESS,
        Ok(Some(1)) => ExitCode::FAILURE,
        other => {
            eprintln!("skipped: small disks cannot be mounted here (root and util-linux are needed): {other:?}");
            ExitCode::from(2)
        }
    }
}

/// Puts a small disk under a directory.
pub fn mount(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "torture"]).arg(dir).output();
    let output = output.map_err(|error| format!("mount: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().into()) }
}

fn filler(committee: &Committee, member: usize) -> PathBuf {
    committee.member_dir(member).join("filler")
}

/// Fills to the last byte.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        let chunk = vec![0xA5; size];
        while file.write_all(&chunk).is_ok() {}
    }
}

/// Fills the disk of one member, sometimes of two or of all, frees them, and starts whoever ended.
pub async fn one(rng: &mut Rng, committee: &mut Committee, outcome: &mut Outcome) {
    pause(rng, 700).await;
    let victims = victims(rng, committee.len());
    for &victim in &victims {
        tokio::task::block_in_place(|| fill(&filler(committee, victim)));
        outcome.faults += 1;
        pause(rng, 200).await;
    }
    pause(rng, FULL_MS).await;
    // Some find out only after others have room again.
    for &victim in &victims {
        pause(rng, 300).await;
        fs::remove_file(filler(committee, victim)).unwrap();
    }
    pause(rng, 300).await;
    for victim in victims {
        match committee.ended(victim) {
            None => outcome.note("wrote nothing while full"),
            Some(status) => after(committee, victim, &status, outcome),
        }
    }
}

/// Checks what a member said that ended on a full disk, and starts it again.
pub fn after(committee: &mut Committee, member: usize, status: &str, outcome: &mut Outcome) {
    let words = committee.words(member);
    let dir = committee.member_dir(member).to_string_lossy().into_owned();
    if words.contains("No space left on device") && words.contains(&dir) {
        outcome.note("ended, naming the full disk");
    } else {
        outcome.violations.push(format!("member {member} ended with {status} on a full disk and says: {words}"));
    }
    if let Err(words) = tokio::task::block_in_place(|| committee.start(member)) {
        outcome.violations.push(format!("member {member} does not start on a disk with room again: {words}"));
    }
}
