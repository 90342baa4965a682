//! A disk that loses power: nothing survives but what was synced, and any part of the rest.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::dice::Dice;
use crate::journal::disk::{Disk, DiskFile, DiskLog};

/// Pages are written by themselves.
const PAGE: usize = 4_096;

/// A change of a file that is not synced yet.
#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => {
                to.resize(to.len().max(offset + bytes.len()), 0);
                to[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Self::Resize(len) => to.resize(*len, 0),
        }
    }
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Change>,
    now: Vec<u8>,
}

/// A change of the names that is not synced yet.
#[derive(Clone)]
enum Naming {
    Link(String, Arc<Mutex<Inode>>),
    Unlink(String),
    Rename(String, String),
}

type Names = BTreeMap<String, Arc<Mutex<Inode>>>;

impl Naming {
    fn apply(&self, to: &mut Names) {
        match self {
            Self::Link(name, inode) => drop(to.insert(name.clone(), Arc::clone(inode))),
            Self::Unlink(name) => drop(to.remove(name)),
            Self::Rename(from, name) => {
                if let Some(inode) = to.remove(from) {
                    to.insert(name.clone(), inode);
                }
            }
        }
    }
}

#[derive(Default)]
struct Machine {
    durable: Names,
    pending: Vec<Naming>,
    now: Names,
    /// Operations until the power goes; `None` is never.
    fuel: Option<u64>,
    used: u64,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Flaky(Arc<Mutex<Machine>>);

/// A file of it.
pub struct FlakyFile {
    disk: Flaky,
    inode: Arc<Mutex<Inode>>,
}

impl Flaky {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }

    /// Lets so many more operations happen.
    pub fn fuel(&self, operations: Option<u64>) {
        self.machine().fuel = operations;
    }

    /// Operations so far.
    pub fn used(&self) -> u64 {
        self.machine().used
    }

    /// Takes power for one operation.
    fn burn(&self) -> io::Result<MutexGuard<'_, Machine>> {
        let mut machine = self.machine();
        machine.used += 1;
        match &mut machine.fuel {
            Some(0) => return Err(io::Error::other("no power")),
            Some(fuel) => *fuel -= 1,
            None => {}
        }
        Ok(machine)
    }

    /// The disk after the power came back: of what was not synced, each page of each write survives by the dice.
    pub fn after_power_loss(&self, dice: &mut Dice) -> Self {
        let machine = self.machine();
        let mut names = machine.durable.clone();
        let odds = dice.roll(5);
        let kept = |dice: &mut Dice| dice.roll(4) < odds;
        machine.pending.iter().filter(|_| kept(dice)).for_each(|naming| naming.apply(&mut names));
        let mut after = Names::new();
        for (name, inode) in names {
            let inode = inode.lock().unwrap();
            let mut content = inode.durable.clone();
            for change in &inode.pending {
                match change {
                    Change::Write(offset, bytes) => {
                        let mut at = 0;
                        while at < bytes.len() {
                            let len = (PAGE - (offset + at) % PAGE).min(bytes.len() - at);
                            if kept(dice) {
                                Change::Write(offset + at, bytes[at..at + len].to_vec()).apply(&mut content);
                            }
                            at += len;
                        }
                    }
                    Change::Resize(_) if kept(dice) => change.apply(&mut content),
                    Change::Resize(_) => {}
                }
            }
            let inode = Inode { durable: content.clone(), pending: Vec::new(), now: content };
            after.insert(name, Arc::new(Mutex::new(inode)));
        }
        Self(Arc::new(Mutex::new(Machine { durable: after.clone(), now: after, ..Machine::default() })))
    }

    /// Changes a byte of a file behind everybody's back.
    pub fn flip(&self, name: &str, offset: usize) {
        let inode = Arc::clone(&self.machine().now[name]);
        let mut inode = inode.lock().unwrap();
        inode.now[offset] ^= 0x10;
        inode.durable = inode.now.clone();
    }

    /// Content of a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        self.machine().now[name].lock().unwrap().now.clone()
    }

    /// Puts a file there, durably.
    pub fn put(&self, name: &str, content: &[u8]) {
        let mut machine = self.machine();
        let inode = Inode { durable: content.to_vec(), pending: Vec::new(), now: content.to_vec() };
        let inode = Arc::new(Mutex::new(inode));
        machine.durable.insert(name.into(), Arc::clone(&inode));
        machine.now.insert(name.into(), inode);
    }
}

impl Disk for Flaky {
    type File = FlakyFile;
    type Log = FlakyFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.burn()?.now.keys().cloned().collect())
    }

    fn open(&self, name: &str, create: bool) -> io::Result<FlakyFile> {
        let mut machine = self.burn()?;
        let inode = match machine.now.get(name) {
            Some(inode) => Arc::clone(inode),
            None if !create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                let inode = Arc::default();
                let link = Naming::Link(name.into(), Arc::clone(&inode));
                link.apply(&mut machine.now);
                machine.pending.push(link);
                inode
            }
        };
        drop(machine);
        Ok(FlakyFile { disk: self.clone(), inode })
    }

    fn open_log(&self, name: &str) -> io::Result<FlakyFile> {
        self.open(name, false)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = self.burn()?;
        machine.now.remove(name).ok_or(io::ErrorKind::NotFound)?;
        machine.pending.push(Naming::Unlink(name.into()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.burn()?;
        let rename = Naming::Rename(from.into(), to.into());
        rename.apply(&mut machine.now);
        machine.pending.push(rename);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut machine = self.burn()?;
        machine.durable = machine.now.clone();
        machine.pending.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/flaky").join(name)
    }
}

impl FlakyFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let _power = self.disk.burn()?;
        let mut inode = self.inode.lock().unwrap();
        change.apply(&mut inode.now);
        inode.pending.push(change);
        Ok(())
    }
}

impl DiskLog for FlakyFile {
    fn write_durably(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(bytes.len().is_multiple_of(512) && offset.is_multiple_of(512));
        self.write_at(bytes, offset)?;
        self.sync()
    }
}

/// Every file system has a longest file.
fn within(len: u64) -> io::Result<usize> {
    const LONGEST: u64 = 16 << 20;
    if len > LONGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(usize::try_from(len).unwrap())
}

impl DiskFile for FlakyFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.inode.lock().unwrap().now.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let inode = self.inode.lock().unwrap();
        let found = inode.now.get(offset..offset + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = within(offset.saturating_add(bytes.len() as u64))? - bytes.len();
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.change(Change::Resize(within(len)?))
    }

    fn sync(&self) -> io::Result<()> {
        let _power = self.disk.burn()?;
        let mut inode = self.inode.lock().unwrap();
        inode.durable = inode.now.clone();
        inode.pending.clear();
        Ok(())
    }
}
