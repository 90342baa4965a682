//! Bytes that are not what was written: one file of one stopped member is damaged, and the member started again.
//!
//! It must refuse, naming the file, and come back by what it says; or what was damaged did not matter, which the checks of
//! the whole run confirm.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    committee::Committee,
    rng::Rng,
    schedule::{Outcome, pause},
};

/// How long a member that took damaged files is watched before it counts as unharmed.
const WATCHED: Duration = Duration::from_millis(1_500);
/// The words name nothing an operator could do.
const NO_WAY: &str = "no way out";
/// How often a repair is tried: it copies from whoever is not behind, which only the start can tell.
const TRIES: usize = 10;

/// A damaged file that nobody has read yet.
pub struct Unread {
    /// Part of the words of whoever does; in a log without the member, because a repair may copy the damage.
    says: String,
    file: PathBuf,
    sound: Vec<u8>,
}

impl Unread {
    fn new(log_dir: &Path, dir: &Path, file: PathBuf, sound: Vec<u8>) -> Option<Self> {
        let journal = dir.join("order/journal");
        let says = match file.strip_prefix(log_dir) {
            Ok(of_log) => format!("{} is damaged", of_log.display()),
            Err(_) if file.starts_with(&journal) => archive_of(&journal),
            Err(_) => return None,
        };
        Some(Self { says, file, sound })
    }
}

fn archive_of(journal: &Path) -> String {
    format!("the ordered batches stored in {} are damaged", journal.display())
}

/// Kills a member, damages a file, starts it, repairs it as it asks.
pub async fn one(rng: &mut Rng, committee: &mut Committee, outcome: &mut Outcome) {
    pause(rng, 500).await;
    let member = rng.below(committee.len());
    committee.kill(member);
    let dir = committee.member_dir(member);
    let Some(file) = pick(rng, &dir) else { return };
    let sound = fs::read(&file).unwrap();
    let (damaged, how) = harm(rng, &sound);
    fs::write(&file, &damaged).unwrap();
    outcome.faults += 1;
    let kind = kind(&dir, &file);
    let words = match tokio::task::block_in_place(|| committee.start(member)) {
        Err(words) => Some(words),
        Ok(()) => watch(committee, member).await,
    };
    let Some(words) = words else {
        outcome.unread.extend(Unread::new(&committee.log_dir(member), &dir, file, sound));
        outcome.note(format!("{kind}: did not matter"));
        return;
    };
    if !names(&words, &dir, &file) && explained(&outcome.unread, &words).is_none() {
        outcome.violations.push(format!("{how} of {} is not named: {words}", file.display()));
        fs::write(&file, &sound).unwrap();
    }
    let repaired = until_it_starts(committee, member, (&file, &sound), words).await;
    match repaired {
        Ok(NO_WAY) => outcome.violations.push(format!("{how} of {} leaves no way out", file.display())),
        Ok(way) => outcome.note(format!("{kind}: refused, {way}")),
        Err(words) => outcome.violations.push(format!("{how} of {} is not repaired: {words}", file.display())),
    }
}

/// Does what a member's last words say and starts it, again while the others it copies from are behind it.
async fn until_it_starts(
    committee: &mut Committee,
    member: usize,
    (file, sound): (&Path, &[u8]),
    mut words: String,
) -> Result<&'static str, String> {
    for attempt in 1..=TRIES {
        let other = (member + attempt) % committee.len();
        let from = if other == member { (member + 1) % committee.len() } else { other };
        let way = repair(committee, (member, from), file, sound, &words);
        match tokio::task::block_in_place(|| committee.start(member)) {
            Ok(()) => return Ok(way),
            Err(again) => words = again,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(words)
}

/// The last words of a member that ends soon after its start.
async fn watch(committee: &mut Committee, member: usize) -> Option<String> {
    let until = std::time::Instant::now() + WATCHED;
    while std::time::Instant::now() < until {
        if committee.ended(member).is_some() {
            return Some(committee.words(member));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// A file, each kind as likely as the others.
fn pick(rng: &mut Rng, dir: &Path) -> Option<PathBuf> {
    let mut files = Vec::new();
    list(dir, &mut files);
    files.retain(|file| fs::metadata(file).is_ok_and(|found| found.len() > 0));
    files.sort();
    let mut kinds: Vec<String> = files.iter().map(|file| kind(dir, file)).collect();
    kinds.sort();
    kinds.dedup();
    let chosen = kinds.get(rng.below(kinds.len().max(1)))?;
    files.retain(|file| kind(dir, file) == *chosen);
    Some(files.swap_remove(rng.below(files.len())))
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), files);
        } else {
            files.push(entry.path());
        }
    }
}

/// What a file is: its path with numbers left out.
fn kind(dir: &Path, file: &Path) -> String {
    let path = file.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
    match path.rsplit_once('/') {
        Some(("order/journal", blob)) if blob.contains('.') => {
            format!("engine's {}", blob.split('.').nth(1).unwrap_or_default())
        }
        Some(("order/journal", name)) => format!("engine's journal {name}"),
        Some(_) if path.contains("/tile/entries/") => "log's entries".into(),
        Some(_) if path.contains("/tile/") => "log's tile".into(),
        _ => path,
    }
}

/// Flips a bit, writes nonsense over some bytes, zeroes a block, or cuts the file.
fn harm(rng: &mut Rng, sound: &[u8]) -> (Vec<u8>, String) {
    let mut bytes = sound.to_vec();
    let at = rng.below(bytes.len());
    match rng.below(10) {
        0 => {
            bytes.truncate(at);
            (bytes, format!("a cut at {at}"))
        }
        1 => {
            let end = bytes.len().min(at + 4_096);
            bytes[at..end].fill(0);
            (bytes, format!("zeroes from {at} to {end}"))
        }
        2 => {
            let end = bytes.len().min(at + 1 + rng.below(64));
            bytes[at..end].iter_mut().for_each(|byte| *byte = u8::try_from(rng.next() & 0xff).unwrap());
            (bytes, format!("nonsense from {at} to {end}"))
        }
        _ => {
            bytes[at] ^= 1 << rng.below(8);
            (bytes, format!("a flipped bit at {at}"))
        }
    }
}

/// Whether an operator who reads these words knows what they are about: the file, or the archive that it is a part of.
fn names(words: &str, dir: &Path, file: &Path) -> bool {
    let archive = archive_of(&dir.join("order/journal"));
    words.contains(&*file.to_string_lossy()) || (kind(dir, file).starts_with("engine's ") && words.contains(&archive))
}

/// Does what the words say; where they say that nothing helps, the disk itself is taken to have come back.
fn repair(
    committee: &Committee,
    (member, from): (usize, usize),
    file: &Path,
    sound: &[u8],
    words: &str,
) -> &'static str {
    if words.contains("copy pending.log and then tile") {
        copy_log(committee, from, member);
        return "repaired from another member";
    }
    if words.contains("copy it from another member") {
        let (other, own) = (committee.member_dir(from), committee.member_dir(member));
        fs::copy(other.join(file.strip_prefix(own).unwrap()), file).unwrap();
        return "repaired from another member";
    }
    if let Some((_, rest)) = words.split_once("create the file ")
        && let Some((mark, _)) = rest.split_once(" and start this member again")
    {
        fs::write(mark, b"").unwrap();
        return "fetched again from the others";
    }
    if words.contains("delete it") {
        fs::remove_file(file).unwrap();
        return "deleted";
    }
    fs::write(file, sound).unwrap();
    if words.contains("new key") || words.contains("new one") { "must rejoin" } else { NO_WAY }
}

/// Which damage, that nobody had to read until now, words are about.
pub fn explained<'a>(unread: &'a [Unread], words: &str) -> Option<&'a Unread> {
    unread.iter().find(|damage| words.contains(&damage.says))
}

/// A member ended because it came to read what was damaged some time ago: it is repaired as it says.
pub async fn after(committee: &mut Committee, member: usize, words: String, outcome: &mut Outcome) {
    let Some(damage) = explained(&outcome.unread, &words) else { return };
    match until_it_starts(committee, member, (&damage.file, &damage.sound), words).await {
        Ok(NO_WAY) => outcome.violations.push(format!("{} leaves no way out", damage.file.display())),
        Ok(way) => outcome.note(format!("noticed later: refused, {way}")),
        Err(words) => outcome.violations.push(format!("{} is not repaired: {words}", damage.file.display())),
    }
}

/// What a log that is damaged asks for.
pub fn copy_log(committee: &Committee, from: usize, to: usize) {
    let (other, own) = (committee.log_dir(from), committee.log_dir(to));
    fs::copy(other.join("pending.log"), own.join("pending.log")).unwrap();
    copy(&other.join("tile"), &own.join("tile"));
}

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        return;
    }
    let mut files = Vec::new();
    list(from, &mut files);
    for file in files {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        // A file just being replaced there is there under its own name a moment later.
        let _ = fs::copy(&file, target);
    }
}
