//! `coalition image push`, `pull`, `ls`, `rm`, `gc`, `peer`: images in stores.

use std::{
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use coalition::UniqueId;
use coalition_content::{
    Content,
    client::{ClientError, Progress, StoreClient},
    fetch::{FetchError, Source, SourceError, fetch},
    store::{Limits, Store, StoreError},
    wire::Listing,
};
use serde_json::{Value, json};

use crate::{
    cli::{ImageCommand, ImageGcArgs, ImageLsArgs, ImagePullArgs, ImagePushArgs, ImageRmArgs},
    error::{CliError, Context, Kind, Result},
    home::Home,
    image::{self, known::KnownImage},
    output::{Output, Steps, table},
    request::now_ms,
    signals::StopSignals,
    stores::{Stores, pusher_key, store_error},
    values,
};

/// How long a store may stay silent before a push or a pull gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two lines of progress.
const TELL: Duration = Duration::from_millis(500);
/// How long a whole pull may take at most.
const PULL: Duration = Duration::from_secs(86_400);
/// Fewest digits that name an image.
const MIN_DIGITS: usize = 4;
const MIB: u64 = 1 << 20;

/// Runs the command; those without a store are `commands::image`'s.
///
/// # Errors
/// Unusable images, stores that refuse or do not answer, a full disk.
pub async fn run(home: &Home, command: &ImageCommand, output: &Output) -> Result<()> {
    match command {
        ImageCommand::Example(_) | ImageCommand::Inspect(_) => super::image::run(command, output),
        ImageCommand::Push(args) => Box::pin(interruptible(push(home, args, output), "push")).await,
        ImageCommand::Pull(args) => Box::pin(interruptible(pull(home, args, output), "pull")).await,
        ImageCommand::Ls(args) => list(home, args, output).await,
        ImageCommand::Rm(args) => remove(home, args, output).await,
        ImageCommand::Gc(args) => collect(home, args, output).await,
        ImageCommand::Peer(_) => {
            let peer = pusher_key(home)?.peer_id();
            output.answer(&json!({ "peer": peer }), |_| peer.to_string());
            Ok(())
        }
    }
}

async fn interruptible(work: impl Future<Output = Result<()>>, what: &str) -> Result<()> {
    let mut stop = StopSignals::listen()?;
    tokio::select! {
        done = work => done,
        () = stop.received() => Err(CliError::new(Kind::Interrupted, "interrupted", "interrupted")
            .hint(format!("what arrived stays; the same {what} again goes on where it stopped"))),
    }
}

/// A transfer's rate, told now and then.
struct Meter<'a> {
    steps: &'a mut Steps,
    what: &'static str,
    began: Instant,
    told: Instant,
    first_bytes: Option<u64>,
}

impl<'a> Meter<'a> {
    fn new(steps: &'a mut Steps, what: &'static str) -> Self {
        let now = Instant::now();
        Self { steps, what, began: now, told: now, first_bytes: None }
    }

    fn at(&mut self, bytes: u64, of: u64) {
        let first = *self.first_bytes.get_or_insert(bytes);
        if self.told.elapsed() < TELL {
            return;
        }
        self.told = Instant::now();
        let rate = rate(bytes.saturating_sub(first), self.began.elapsed());
        let text = format!("{}: {} of {} MiB, {} MiB/s", self.what, bytes / MIB, of.div_ceil(MIB), rate / MIB);
        self.steps.begin(&text);
        if self.steps.output().is_json() {
            let value = json!({ "progress": self.what, "bytes": bytes, "of_bytes": of, "bytes_per_s": rate });
            self.steps.output().event(&value, &text);
        }
    }
}

/// Bytes a second.
fn rate(bytes: u64, took: Duration) -> u64 {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1_000) / ms
}

async fn push(home: &Home, args: &ImagePushArgs, output: &Output) -> Result<()> {
    let mut steps = output.steps();
    steps.begin("reading the image");
    let facts = image::read_facts(&args.file, coalition_content::MAX_CONTENT_BYTES)?;
    let contents = image::inspect(&args.file)?;
    let file =
        File::open(&facts.path).or_input("image_unreadable", || format!("cannot read {}", facts.path.display()))?;
    let (file, name) = (Arc::new(file), args.file.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let fields = json!({ "blake3": facts.hash.to_string(), "size_bytes": facts.size_bytes });
    steps.done("image", &format!("blake3 {}, {} KiB", facts.hash, facts.size_bytes.div_ceil(1_024)), fields);
    let stores = Stores::as_pusher(home, &args.stores.store).await?;
    // Without --store the first one is enough: it is the coalition's choice.
    let wanted = if args.stores.store.is_empty() { 1 } else { args.stores.store.len() };
    for store in stores.all().take(wanted) {
        let began = Instant::now();
        let mut meter = Meter::new(&mut steps, "pushing");
        let tell = |now: Progress| {
            meter.at(now.there_bytes.saturating_add(now.sent_bytes).min(now.size_bytes), now.size_bytes)
        };
        let pushed = store.push(&facts.outline, &file, PATIENCE, tell).await;
        let pushed = pushed.map_err(|error| store_error(error, store.address()))?;
        let known = KnownImage::load(home, facts.hash)?;
        let mut known = known.unwrap_or_else(|| KnownImage::new(name.clone(), facts.size_bytes, contents.disk_bytes));
        known.is_in(store.address().clone());
        known.save(home, facts.hash)?;
        say_pushed(&mut steps, &store, (facts.hash, pushed), began.elapsed());
    }
    stores.close().await;
    output.line(format!("\nNext: coalition request --image {} --for 10m --max-rate 0.05", &facts.hash));
    Ok(())
}

fn say_pushed(steps: &mut Steps, store: &StoreClient, (hash, pushed): (UniqueId, Progress), took: Duration) {
    let rate = rate(pushed.sent_bytes, took);
    let text = match pushed.sent_bytes {
        0 => "it was there already; held anew".to_owned(),
        sent if pushed.there_bytes > 0 => {
            format!(
                "{} KiB sent, {} KiB were there, {} MiB/s",
                sent.div_ceil(1_024),
                pushed.there_bytes / 1_024,
                rate / MIB
            )
        }
        sent => format!("{} KiB sent, {} MiB/s", sent.div_ceil(1_024), rate / MIB),
    };
    let fields = json!({
        "blake3": hash.to_string(), "size_bytes": pushed.size_bytes, "there_bytes": pushed.there_bytes,
        "sent_bytes": pushed.sent_bytes, "bytes_per_s": rate, "store": store.address().to_string(),
    });
    steps.done("pushed", &format!("to store {}: {text}", &store.address().peer.to_string()[..8]), fields);
}

/// A store a pull asks.
struct From(StoreClient);

#[async_trait]
impl Source for From {
    async fn slice(
        &self,
        content: Content,
        range: std::ops::Range<u64>,
        _deadline: Duration,
    ) -> std::result::Result<Vec<u8>, SourceError> {
        self.0.slice(content, range).await.map_err(|error| match &error {
            ClientError::Refused(fault) if fault.code == "other_size" => SourceError::OtherSize,
            ClientError::Refused(fault) if !matches!(fault.code.as_str(), "disk" | "internal") => {
                SourceError::Never(error.to_string())
            }
            _ => SourceError::Later(error.to_string()),
        })
    }
}

async fn pull(home: &Home, args: &ImagePullArgs, output: &Output) -> Result<()> {
    if args.file.exists() && !args.force {
        let message = format!("{} is already there", args.file.display());
        return Err(CliError::new(Kind::Conflict, "file_exists", message)
            .hint("choose another name, or replace it with --force"));
    }
    let mut steps = output.steps();
    steps.begin("asking the stores");
    let stores = Stores::as_nobody(home, &args.stores.store).await?;
    let having = stores.having(args.hash).await;
    let Some((_, size)) = having.first() else {
        return Err(not_stored(args.hash));
    };
    let content = Content::new(args.hash, *size).or_fault("store", || "the store names a size no image has".into())?;
    let sources: Vec<From> =
        stores.all().filter(|store| having.iter().any(|(has, _)| has == store.address())).map(From).collect();
    // A directory of its own for each image: two pulls never meet, and one that was cut is found again.
    let dir = home.root().join("pulls").join(args.hash.to_string());
    let failed = |error: StoreError| CliError::fault("disk", "the image cannot be kept").because(error);
    let local = Store::open(&dir, Limits::of(u64::MAX)).map_err(failed)?;
    let asked: Vec<&dyn Source> = sources.iter().map(|from| from as &dyn Source).collect();
    let began = Instant::now();
    let mut meter = Meter::new(&mut steps, "pulling");
    let fetched = fetch(&local, content, &asked, PULL, |bytes| meter.at(bytes, content.size())).await;
    fetched.map_err(|error| fetch_error(error, args.hash))?;
    local.check(args.hash).map_err(failed)?;
    let held = local.hold(args.hash);
    move_to(&held.path(), &args.file)?;
    drop(held);
    drop(local);
    let _ = std::fs::remove_dir_all(&dir);
    let rate = rate(content.size(), began.elapsed());
    let fields = json!({ "blake3": args.hash.to_string(), "size_bytes": content.size(), "bytes_per_s": rate, "file": args.file });
    let text = format!("{}: {} KiB, {} MiB/s", args.file.display(), content.size().div_ceil(1_024), rate / MIB);
    steps.done("pulled", &text, fields);
    stores.close().await;
    Ok(())
}

/// Moves a file, by way of a copy where the target is on another file system.
fn move_to(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", to.display());
    if std::fs::rename(from, to).is_ok() {
        return Ok(());
    }
    let mut beside = to.as_os_str().to_owned();
    beside.push(".partial");
    std::fs::copy(from, &beside).and_then(|_| std::fs::rename(&beside, to)).or_fault("disk", failed)
}

fn fetch_error(error: FetchError, hash: UniqueId) -> CliError {
    match error {
        FetchError::Wrong => {
            let message = format!("what the stores sent does not belong to {hash}");
            CliError::new(Kind::Unproven, "image_mismatch", message)
                .hint("name another store with --store ADDRESS, and tell the operator of this one")
        }
        FetchError::Store(error) => CliError::fault("disk", "the image cannot be kept").because(error),
        error => CliError::new(Kind::Unreachable, "image_unavailable", "the image could not be fetched").because(error),
    }
}

/// No store that was asked has it.
#[must_use]
pub fn not_stored(hash: UniqueId) -> CliError {
    CliError::input("image_not_stored", format!("no store that answers has image {hash}"))
        .hint("push it: `coalition image push FILE`; or name the store that has it: --store ADDRESS")
}

async fn listing(store: &StoreClient) -> Result<Listing> {
    store.list().await.map_err(|error| store_error(error, store.address()))
}

async fn list(home: &Home, args: &ImageLsArgs, output: &Output) -> Result<()> {
    let stores = Stores::as_pusher(home, &args.stores.store).await?;
    let (mut values, mut text) = (Vec::new(), String::new());
    for store in stores.all() {
        let held = listing(&store).await?;
        values.push(store_json(home, &store, &held)?);
        text += &store_text(home, &store, &held)?;
    }
    stores.close().await;
    output.answer(&json!({ "stores": values }), |_| text);
    Ok(())
}

fn store_json(home: &Home, store: &StoreClient, held: &Listing) -> Result<Value> {
    let images: Result<Vec<Value>> = held.entries.iter().map(|entry| {
        let name = KnownImage::load(home, entry.hash)?.map(|known| known.name);
        Ok(json!({
            "blake3": entry.hash.to_string(), "name": name, "size_bytes": entry.size, "have_bytes": entry.have,
            "whole": entry.expires_ms > 0, "pushed_ms": entry.pushed_ms, "used_ms": entry.used_ms, "expires_ms": entry.expires_ms,
        }))
    }).collect();
    Ok(json!({
        "store": store.address().to_string(), "quota_bytes": held.quota_bytes, "used_bytes": held.used_bytes,
        "retain_s": held.retain_s, "images": images?,
    }))
}

fn store_text(home: &Home, store: &StoreClient, held: &Listing) -> Result<String> {
    let rows: Result<Vec<Vec<String>>> = held
        .entries
        .iter()
        .map(|entry| {
            let name = KnownImage::load(home, entry.hash)?.map_or_else(|| "-".to_owned(), |known| known.name);
            let state = match entry.expires_ms {
                0 => format!("{} of {} MiB", entry.have / MIB, entry.size.div_ceil(MIB)),
                until => format!("until {}", values::utc(until)),
            };
            Ok(vec![
                entry.hash.to_string()[..16].to_owned(),
                format!("{} KiB", entry.size.div_ceil(1_024)),
                state,
                values::utc(entry.used_ms),
                name,
            ])
        })
        .collect();
    let head = format!(
        "store {}: {} of {} held\n",
        &store.address().peer.to_string()[..8],
        values::mib(held.used_bytes.div_ceil(MIB)),
        values::mib(held.quota_bytes / MIB)
    );
    let rows = rows?;
    if rows.is_empty() {
        return Ok(head + "  nothing\n");
    }
    Ok(head + &table(&["BLAKE3", "SIZE", "HELD", "LAST USED", "NAME"], &rows) + "\n")
}

async fn remove(home: &Home, args: &ImageRmArgs, output: &Output) -> Result<()> {
    let stores = Stores::as_pusher(home, &args.stores.store).await?;
    let mut removed = Vec::new();
    for store in stores.all() {
        let held = listing(&store).await?;
        for digits in &args.images {
            if let Some(hash) = meant(&held, digits)? {
                give_up(home, &store, hash).await?;
                removed.push((hash, store.address().clone()));
            }
        }
    }
    stores.close().await;
    if removed.is_empty() {
        return Err(CliError::input("unknown_image", "you hold none of these in the stores that were asked")
            .hint("`coalition image ls` lists what you hold"));
    }
    say_removed(output, &removed);
    Ok(())
}

fn say_removed(output: &Output, removed: &[(UniqueId, coalition_universe::PeerAddress)]) {
    let values: Vec<Value> =
        removed.iter().map(|(hash, store)| json!({ "blake3": hash.to_string(), "store": store.to_string() })).collect();
    output.answer(&json!({ "removed": values }), |_| match removed.is_empty() {
        true => "nothing to remove".to_owned(),
        false => removed.iter().map(|(hash, _)| format!("removed {hash}\n")).collect(),
    });
}

/// The image of a listing that these digits begin.
fn meant(held: &Listing, digits: &str) -> Result<Option<UniqueId>> {
    let digits = digits.to_ascii_lowercase();
    if digits.len() < MIN_DIGITS || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let message = format!("{digits:?} is no image: give its blake3, or at least {MIN_DIGITS} of its first digits");
        return Err(CliError::input("unknown_image", message).hint("`coalition image ls` lists what you hold"));
    }
    let mut fits: Vec<UniqueId> =
        held.entries.iter().map(|entry| entry.hash).filter(|hash| hash.to_string().starts_with(&digits)).collect();
    fits.dedup();
    match fits.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        many => {
            let message = format!("{digits} fits {} images", many.len());
            Err(CliError::input("ambiguous_image", message).hint("give more digits"))
        }
    }
}

async fn give_up(home: &Home, store: &StoreClient, hash: UniqueId) -> Result<()> {
    store.remove(hash).await.map_err(|error| store_error(error, store.address()))?;
    KnownImage::forget(home, hash, store.address())
}

async fn collect(home: &Home, args: &ImageGcArgs, output: &Output) -> Result<()> {
    let stores = Stores::as_pusher(home, &args.stores.store).await?;
    let before = now_ms().saturating_sub(args.unused_for.as_ms());
    let mut removed = Vec::new();
    for store in stores.all() {
        for entry in listing(&store).await?.entries {
            // An upload somebody else finishes meanwhile stays for them.
            if entry.expires_ms > 0 && entry.used_ms > before {
                continue;
            }
            if !args.dry_run {
                give_up(home, &store, entry.hash).await?;
            }
            removed.push((entry.hash, store.address().clone()));
        }
    }
    stores.close().await;
    say_removed(output, &removed);
    Ok(())
}
