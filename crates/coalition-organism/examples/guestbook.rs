//! A complete organism: a guestbook. Anybody signs it once; a committee of four orders, executes and certifies; a
//! reader follows the certified log; the proof of an entry verifies offline.
//!
//! `cargo run --release -p coalition-organism --example guestbook`
#![allow(clippy::print_stdout, missing_docs, unreachable_pub)]

use std::{collections::BTreeMap, error::Error, time::Duration};

use coalition::codec;
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{Fold, FoldFault, Follower, WriteError, random_write_id};
use coalition_testkit::{Carried, Committee};

// 1. The state, and the one place where it changes. Readers and members fold the same entries.
#[derive(Default)]
pub struct Guestbook {
    lines: BTreeMap<String, String>,
}

impl Guestbook {
    fn take(&mut self, entry: &Entry) {
        let text = String::from_utf8_lossy(&entry.body);
        if let Some((guest, line)) = text.split_once(": ") {
            self.lines.insert(guest.into(), line.into());
        }
    }
}

// 2. The machine: what a command means. Pure; every member reaches the same answer.
impl Machine for Guestbook {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        let text = std::str::from_utf8(command).map_err(|_| Refusal::new("not_text", "a line is UTF-8 text"))?;
        let (guest, _) = text
            .split_once(": ")
            .ok_or_else(|| Refusal::new("no_guest", format!("a line looks like \"name: words\", got {text:?}")))?;
        if self.lines.contains_key(guest) {
            return Err(Refusal::new("signed_already", format!("{guest} has signed")));
        }
        Ok(vec![Draft::new("guestbook.line", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None // nothing happens that nobody asked for
    }

    fn evolve(&mut self, entry: &Entry) {
        self.take(entry);
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    // What a restarted member goes on from: the whole state, in an encoding that has one form.
    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&self.lines)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.lines = codec::decode(snapshot, MAX_STATE_BYTES)?;
        Ok(())
    }
}

// 3. The surface: what readers see.
impl Fold for Guestbook {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.take(entry);
        Ok(())
    }
}

const SOON: Duration = Duration::from_secs(20);

/// Runs the whole thing; the tests call it too.
pub async fn run() -> Result<(), Box<dyn Error>> {
    let committee = Committee::start(4, vec![Carried::new("guestbook", Guestbook::default)]).await;
    let client = committee.client().await;
    let book = committee.organism(&client, "guestbook");
    let reader = Follower::spawn(book.clone(), Guestbook::default());

    let signed = book.write(random_write_id(), b"ada: hello".to_vec(), SOON).await?;
    println!("certified as {}", signed.entries[0]);

    let line = reader.wait_for(SOON, |book| book.lines.get("ada").cloned()).await?;
    assert_eq!(line, "hello");

    let again = book.write(random_write_id(), b"ada: hello again".to_vec(), SOON).await;
    assert!(matches!(&again, Err(WriteError::Refused(refusal)) if refusal.code == "signed_already"));

    let proof = book.evidence(signed.entries[0].index, SOON).await?;
    committee.stop().await;
    let verified = proof.verify(book.id(), book.roster())?; // nobody is running any more
    println!("proven offline: {}", String::from_utf8_lossy(&verified.entry().body));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run().await
}
