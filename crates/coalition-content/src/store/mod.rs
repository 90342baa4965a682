//! Content on this machine's disk. Source: `docs/protocol/content.md`, sections 4 and 5.
//!
//! Nothing is written that did not verify, nothing leaves that does not verify again, and a crash at any moment leaves content
//! that is whole, or an upload that goes on. All calls block on the disk.

mod files;
mod found;
mod room;
mod state;
mod upload;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coalition::UniqueId;
use coalition_universe::PeerId;
use nix::fcntl::{Flock, FlockArg};

use self::files::{Layout, Owner, owners_of, tree_of};
use self::state::{Aside, Begun, Key, Object, State, cost};
use self::upload::{Pieces, Upload};
use crate::tree::{Content, SliceError, slice_of_files};
use crate::wire::{Entry, Run};

/// A use is written to the disk when the last one noted is older than this.
const NOTE_USE_MS: u64 = 60_000;

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses the directory.
    #[error("another process uses the content store {path}; stop it, or choose another directory")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The disk refuses.
    #[error("the content store cannot use {path}")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not here whole; for a piece, nobody began.
    #[error("content {hash} is not here")]
    Unknown {
        /// Its blake3.
        hash: UniqueId,
    },
    /// It is here with another size.
    #[error("content {hash} has {stored} bytes, not {given}")]
    OtherSize {
        /// Its blake3.
        hash: UniqueId,
        /// Its size.
        stored: u64,
        /// The size asked for.
        given: u64,
    },
    /// A slice that does not belong.
    #[error("the slice was refused")]
    Unverified(#[source] SliceError),
    /// The copy here was damaged, and is set aside.
    #[error("the copy of {hash} was damaged and has been set aside; push it again")]
    Damaged {
        /// Its blake3.
        hash: UniqueId,
    },
    /// Larger than the pusher's whole quota.
    #[error("{size} bytes are more than the whole quota of {quota} bytes")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The quota.
        quota: u64,
    },
    /// It would exceed the quota.
    #[error("{asked} bytes beside the {used} held exceed the quota of {quota}; remove something first")]
    Quota {
        /// Bytes held.
        used: u64,
        /// Bytes asked for.
        asked: u64,
        /// The quota.
        quota: u64,
    },
    /// The store is full of what is held.
    #[error("the store has no room for {needed} bytes; {free} could be free, the rest is held")]
    NoRoom {
        /// Bytes needed.
        needed: u64,
        /// Bytes that could be free.
        free: u64,
    },
    /// Too many unfinished uploads.
    #[error("{limit} unfinished uploads are the most; finish or remove one first")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}

/// A store's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes on the disk.
    pub capacity_bytes: u64,
    /// How long a push holds.
    pub retain: Duration,
    /// How long an upload nobody writes to is kept when room is needed.
    pub idle: Duration,
    /// Unfinished uploads one pusher may have.
    pub uploads_each: usize,
}

impl Limits {
    /// So many bytes; pushes hold for 30 days, idle uploads for an hour, 16 uploads each.
    #[must_use]
    pub const fn of(capacity_bytes: u64) -> Self {
        let (retain, idle) = (Duration::from_secs(30 * 86_400), Duration::from_secs(3_600));
        Self { capacity_bytes, retain, idle, uploads_each: 16 }
    }

    fn retain_ms(&self) -> u64 {
        millis(self.retain)
    }

    fn idle_ms(&self) -> u64 {
        millis(self.idle)
    }
}

/// Somebody who may push, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pusher {
    /// Who.
    pub peer: PeerId,
    /// Bytes it may hold; each content counts as at least 64 KiB.
    pub quota_bytes: u64,
    /// For an unlisted one: bytes all of them together may hold.
    pub strangers_bytes: Option<u64>,
}

/// What is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing: it is here.
    Nothing,
    /// At most 1,024 runs of pieces; there may be more behind them.
    Pieces(Vec<Run>),
}

/// What time it is, Unix milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A store in a directory that is its alone.
pub struct Store {
    layout: Layout,
    limits: Limits,
    state: Mutex<State>,
    clock: Clock,
    _lock: Flock<File>,
}

/// Content that is not evicted while this exists; it need not be there yet.
pub struct Held {
    store: Arc<Store>,
    hash: UniqueId,
}

impl Held {
    /// The file, once it is there whole.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.store.layout.object(self.hash)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.store.state();
        let Some(count) = state.held.get_mut(&self.hash) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.held.remove(&self.hash);
        if state.doomed.remove(&self.hash)
            && let Err(error) = self.store.discard(&mut state, &Key::Object(self.hash))
        {
            tracing::warn!(%error, "content its owner removed could not be removed yet");
        }
    }
}

impl Store {
    /// Opens the store in `dir`, making it if there is none. What a crash left unfinished is tidied; no content is read.
    ///
    /// # Errors
    /// [`StoreError::Busy`] or [`StoreError::Disk`].
    pub fn open(dir: &Path, limits: Limits) -> Result<Arc<Self>, StoreError> {
        Self::open_at(dir, limits, Arc::new(now_ms))
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_at(dir: &Path, limits: Limits, clock: Clock) -> Result<Arc<Self>, StoreError> {
        let layout = Layout(dir.into());
        let disk = |source| StoreError::Disk { path: dir.into(), source };
        layout.make().map_err(disk)?;
        let lock = files::open_own(&dir.join("lock")).map_err(disk)?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(StoreError::Busy { path: dir.into() }),
            Err((_, errno)) => return Err(disk(errno.into())),
        };
        let state = found::all(&layout).map_err(disk)?;
        Ok(Arc::new(Self { layout, limits, state: Mutex::new(state), clock, _lock: lock }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
        move |source| StoreError::Disk { path: path.into(), source }
    }

    /// The store's limits.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The size of content that is here whole.
    #[must_use]
    pub fn stat(&self, hash: UniqueId) -> Option<u64> {
        self.state().objects.get(&hash).map(|object| object.content.size())
    }

    /// Bytes on the disk, unfinished uploads in full.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.state().total()
    }

    /// Keeps content from being evicted, also while it is on its way.
    #[must_use]
    pub fn hold(self: &Arc<Self>, hash: UniqueId) -> Held {
        *self.state().held.entry(hash).or_default() += 1;
        Held { store: Arc::clone(self), hash }
    }

    /// Begins to take content in, or goes on with it. `pusher` holds it from now on; without one, only this process does.
    ///
    /// # Errors
    /// [`StoreError::OtherSize`], the quotas, [`StoreError::NoRoom`], [`StoreError::TooMany`], [`StoreError::Disk`].
    pub fn begin(&self, content: Content, pusher: Option<&Pusher>) -> Result<Missing, StoreError> {
        let upload = {
            let (mut state, now) = (self.state(), (self.clock)());
            let stored = state.objects.get(&content.hash()).map(|object| object.content.size());
            if let Some(stored) = stored.filter(|stored| *stored != content.size()) {
                return Err(StoreError::OtherSize { hash: content.hash(), stored, given: content.size() });
            }
            if let Some(pusher) = pusher {
                state.admit(content, pusher, &self.limits, now)?;
            }
            if stored.is_some() {
                self.pushed_again(&mut state, content, pusher, now)?;
                return Ok(Missing::Nothing);
            }
            self.begun(&mut state, content, pusher, now)?
        };
        let pieces = self.pieces(&upload)?;
        if pieces.is_complete() {
            self.publish(&upload, &pieces)?;
            return Ok(Missing::Nothing);
        }
        Ok(Missing::Pieces(pieces.missing()))
    }

    fn pushed_again(
        &self,
        state: &mut State,
        content: Content,
        pusher: Option<&Pusher>,
        now: u64,
    ) -> Result<(), StoreError> {
        let path = self.layout.object(content.hash());
        let Some(object) = state.objects.get_mut(&content.hash()) else { return Ok(()) };
        object.used_ms = now;
        files::set_modified(&path, now);
        if let Some(pusher) = pusher {
            let mut owners = object.owners.clone();
            owners.insert(pusher.peer, owner(pusher, now));
            files::write_owners(&path, &owners).map_err(Self::disk(&path))?;
            object.owners = owners;
            state.doomed.remove(&content.hash());
        }
        Ok(())
    }

    fn begun(
        &self,
        state: &mut State,
        content: Content,
        pusher: Option<&Pusher>,
        now: u64,
    ) -> Result<Arc<Upload>, StoreError> {
        let path = self.layout.partial(content);
        if !state.uploads.contains_key(&content) {
            self.make_room(state, cost(content), now)?;
            let upload = Upload::open(&path, content).map_err(Self::disk(&path))?;
            let owners = files::Owners::new();
            state.uploads.insert(content, Begun { upload: Arc::new(upload), owners, used_ms: now });
        }
        let Some(begun) = state.uploads.get_mut(&content) else {
            return Err(StoreError::Unknown { hash: content.hash() });
        };
        begun.used_ms = now;
        if let Some(pusher) = pusher {
            begun.owners.insert(pusher.peer, owner(pusher, now));
            files::write_owners(&path, &begun.owners).map_err(Self::disk(&path))?;
        }
        Ok(Arc::clone(&begun.upload))
    }

    /// Takes a slice of a piece, after [`Store::begin`]. Answers whether the content is now whole. `from` must have begun.
    ///
    /// # Errors
    /// [`StoreError::Unverified`] for bytes that do not belong, which change nothing; [`StoreError::Unknown`] without a beginning.
    pub fn put(&self, content: Content, piece: u32, slice: &[u8], from: Option<PeerId>) -> Result<bool, StoreError> {
        let unknown = || StoreError::Unknown { hash: content.hash() };
        let upload = {
            let mut state = self.state();
            if let Some(object) = state.objects.get(&content.hash()) {
                return if object.content == content { Ok(true) } else { Err(unknown()) };
            }
            let begun = state.uploads.get_mut(&content).ok_or_else(unknown)?;
            if from.is_some_and(|from| !begun.owners.contains_key(&from)) {
                return Err(unknown());
            }
            begun.used_ms = (self.clock)();
            Arc::clone(&begun.upload)
        };
        if !self.pieces(&upload)?.has(piece) {
            upload.write(piece, slice).map_err(|error| self.slice_error(content, error))?;
        }
        let mut pieces = self.pieces(&upload)?;
        pieces.mark(piece);
        if pieces.is_complete() {
            self.publish(&upload, &pieces)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn pieces<'a>(&self, upload: &'a Upload) -> Result<Pieces<'a>, StoreError> {
        upload.pieces().map_err(|error| self.slice_error(upload.content, error))
    }

    fn slice_error(&self, content: Content, error: SliceError) -> StoreError {
        match error {
            SliceError::Io(source) => StoreError::Disk { path: self.layout.partial(content), source },
            error @ SliceError::Unverified { .. } => StoreError::Unverified(error),
        }
    }

    /// Makes a finished upload durable content. The data is renamed last: before that it is still an upload.
    fn publish(&self, upload: &Upload, _nobody_else_does: &Pieces<'_>) -> Result<(), StoreError> {
        let content = upload.content;
        let (from, to) = (self.layout.partial(content), self.layout.object(content.hash()));
        upload.sync().map_err(Self::disk(&from))?;
        let mut state = self.state();
        let Some(begun) = state.uploads.get(&content) else { return Ok(()) };
        let (owners, used_ms) = (begun.owners.clone(), begun.used_ms);
        let moved = || {
            files::remove_all(&to)?;
            fs::hard_link(tree_of(&from), tree_of(&to))?;
            files::write_owners(&to, &owners)?;
            files::sync_dir(&self.layout.objects())?;
            fs::rename(&from, &to)?;
            files::sync_dir(&self.layout.objects())?;
            files::remove(&tree_of(&from))?;
            files::remove(&owners_of(&from))
        };
        moved().map_err(Self::disk(&to))?;
        state.uploads.remove(&content);
        state.objects.insert(content.hash(), Object { content, owners, used_ms });
        Ok(())
    }

    /// A slice of content that is here whole, verified as it is read. A damaged copy is set aside.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::OtherSize`], [`StoreError::Damaged`], [`StoreError::Disk`].
    pub fn slice(&self, content: Content, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let (hash, path) = (content.hash(), self.layout.object(content.hash()));
        let opened = {
            let (mut state, now) = (self.state(), (self.clock)());
            let object = state.objects.get_mut(&hash).ok_or(StoreError::Unknown { hash })?;
            if object.content != content {
                return Err(StoreError::OtherSize { hash, stored: object.content.size(), given: content.size() });
            }
            if object.used_ms.saturating_add(NOTE_USE_MS) <= now {
                files::set_modified(&path, now);
            }
            object.used_ms = now;
            File::open(&path).and_then(|data| Ok((data, File::open(tree_of(&path))?)))
        };
        let (data, tree) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.set_aside(hash)),
            Err(error) => return Err(Self::disk(&path)(error)),
        };
        match slice_of_files(content, &data, &tree, range) {
            Ok(slice) => Ok(slice),
            Err(SliceError::Unverified { .. }) => Err(self.set_aside(hash)),
            Err(SliceError::Io(error)) => Err(Self::disk(&path)(error)),
        }
    }

    /// Reads all of content that is here and compares its blake3; a damaged copy is set aside.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Damaged`], [`StoreError::Disk`].
    pub fn check(&self, hash: UniqueId) -> Result<u64, StoreError> {
        let size = self.stat(hash).ok_or(StoreError::Unknown { hash })?;
        let path = self.layout.object(hash);
        let mut hasher = blake3::Hasher::new();
        let read = File::open(&path).and_then(|file| {
            hasher.update_reader(&file)?;
            Ok(())
        });
        match read {
            Ok(()) if hasher.finalize().as_bytes() == hash.as_bytes() => Ok(size),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Self::disk(&path)(error)),
            _ => Err(self.set_aside(hash)),
        }
    }

    /// Never served again; kept for whoever wants to know why.
    fn set_aside(&self, hash: UniqueId) -> StoreError {
        let mut state = self.state();
        let path = self.layout.object(hash);
        if let Some(object) = state.objects.remove(&hash) {
            tracing::error!(%hash, "a copy is damaged; it is set aside and not served");
            let name = hash.to_string();
            if fs::rename(&path, self.layout.damaged().join(&name)).is_ok() {
                let bytes = object.content.size();
                state.damaged.insert(name, Aside { bytes, since_ms: (self.clock)() });
            }
            if let Err(error) = files::remove_all(&path) {
                tracing::warn!(%error, "what was beside a damaged copy could not be removed");
            }
        }
        StoreError::Damaged { hash }
    }

    /// What a pusher holds behind `after`, ascending, and how many bytes all of it is.
    #[must_use]
    pub fn list(&self, peer: PeerId, after: Option<UniqueId>) -> (Vec<Entry>, u64) {
        let state = self.state();
        (state.entries(peer, after, &self.limits), state.used(peer, &self.limits, (self.clock)()))
    }

    /// Ends a pusher's hold, of content and of uploads; what nobody else holds is removed. Answers whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub fn remove(&self, peer: PeerId, hash: UniqueId) -> Result<bool, StoreError> {
        let mut state = self.state();
        let mut was_held = false;
        if let Some(object) = state.objects.get_mut(&hash)
            && object.owners.remove(&peer).is_some()
        {
            was_held = true;
            let path = self.layout.object(hash);
            let owners = object.owners.clone();
            files::write_owners(&path, &owners).map_err(Self::disk(&path))?;
            match (owners.is_empty(), state.held.contains_key(&hash)) {
                (true, true) => drop(state.doomed.insert(hash)),
                (true, false) => self.discard(&mut state, &Key::Object(hash))?,
                (false, _) => {}
            }
        }
        let uploads: Vec<Content> = state.uploads.keys().filter(|content| content.hash() == hash).copied().collect();
        for content in uploads {
            let Some(begun) = state.uploads.get_mut(&content) else { continue };
            if begun.owners.remove(&peer).is_none() {
                continue;
            }
            was_held = true;
            let path = self.layout.partial(content);
            files::write_owners(&path, &begun.owners).map_err(Self::disk(&path))?;
            if begun.owners.is_empty() && !state.held.contains_key(&hash) {
                self.discard(&mut state, &Key::Upload(content))?;
            }
        }
        Ok(was_held)
    }

    /// Removes an upload that cannot be finished, unless pushers wait for it.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub fn abandon(&self, content: Content) -> Result<(), StoreError> {
        let mut state = self.state();
        match state.uploads.get(&content) {
            Some(begun) if begun.owners.is_empty() => self.discard(&mut state, &Key::Upload(content)),
            _ => Ok(()),
        }
    }

    fn make_room(&self, state: &mut State, needed: u64, now: u64) -> Result<(), StoreError> {
        let items = state.removable(&self.limits, now);
        let going = room::choose(items, state.total(), needed, self.limits.capacity_bytes);
        for key in going.map_err(|free| StoreError::NoRoom { needed, free })? {
            self.discard(state, &key)?;
        }
        Ok(())
    }

    fn discard(&self, state: &mut State, key: &Key) -> Result<(), StoreError> {
        let path = match key {
            Key::Object(hash) => self.layout.object(*hash),
            Key::Upload(content) => self.layout.partial(*content),
            Key::Damaged(name) => self.layout.damaged().join(name),
        };
        files::remove_all(&path).map_err(Self::disk(&path))?;
        match key {
            Key::Object(hash) => drop(state.objects.remove(hash)),
            Key::Upload(content) => drop(state.uploads.remove(content)),
            Key::Damaged(name) => drop(state.damaged.remove(name)),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.layout.0.display())
    }
}

fn owner(pusher: &Pusher, pushed_ms: u64) -> Owner {
    Owner { pushed_ms, stranger: pusher.strangers_bytes.is_some() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
