//! Requests and grants of this requester, one directory each, readable by nobody else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use coalition::{Mrtd, RateQ64, RequestId, UniqueId};
use coalition_host::ExitOutcome;
use coalition_shuffle::{PendingRequest, SshAccessReceipt};
use coalition_universe::NodeKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    error::{CliError, Context, Result},
    home::{Home, private_dir, private_write},
    request::now_ms,
    roles::config::load_key,
};

const VERSION: u8 = 1;
/// Files beside a grant until its receipt is here.
const PENDING: &str = "pending.secret";
const PENDING_NODE: &str = "pending.node.key";
/// Largest grant file read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Fewest digits that name a grant; fewer are usually a slip.
const MIN_PREFIX: usize = 2;

/// How far a request of ours got, as far as this directory knows. The log of the market is the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Written down before it was sent; may be in the market or not.
    Requested,
    /// The market granted it.
    Granted,
    /// The receipt is here: `coalition ssh` works.
    Ready,
    /// Withdrawn before it was granted.
    Withdrawn,
    /// Ended, or asked to end.
    Ended,
}

impl Stage {
    /// One word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Granted => "granted",
            Self::Ready => "ready",
            Self::Withdrawn => "withdrawn",
            Self::Ended => "ended",
        }
    }
}

/// What was cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cleared {
    /// The provider, 64 hex digits.
    pub provider: String,
    /// Which of its offers.
    pub offer: String,
    /// Where.
    pub region: String,
    /// USD per core-hour with memory included.
    pub rate: RateQ64,
    /// Unix milliseconds at which it ends.
    pub valid_to_ms: u64,
    /// Whether it must run inside TDX.
    #[serde(default)]
    pub tdx_required: bool,
    /// The measurement it must show.
    #[serde(default)]
    pub expected_mrtd: Option<Mrtd>,
}

/// How to get in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Name or address.
    pub host: String,
    /// Port of the SSH server.
    pub port: u16,
    /// User.
    pub user: String,
    /// How the workload is separated from its host, in the provider's words.
    pub isolation: String,
    /// What vouches for the machine, as found when the receipt came.
    pub posture: String,
    /// The host key it must show, 64 hex digits, where a quote binds it.
    #[serde(default)]
    pub quoted_host_key: Option<String>,
}

/// How a grant's command ended, as its machine said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadExit {
    /// When, Unix milliseconds by the machine's clock.
    pub at_ms: u64,
    /// How.
    pub outcome: ExitOutcome,
}

/// Whether the key to log in with opens anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// There is none yet, or never was.
    None,
    /// It opens the machine.
    Live,
    /// The grant is over; the key is deleted.
    Dead,
}

/// What `grant.json` holds. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFile {
    /// Version of this file; 1.
    pub version: u8,
    /// The request's and grant's id.
    pub grant: RequestId,
    /// Fingerprint of the coalition, 64 hex digits.
    pub coalition: String,
    /// When it was requested, Unix milliseconds.
    pub requested_ms: u64,
    /// How far it got.
    pub stage: Stage,
    /// blake3 of the image, 64 hex digits.
    pub image: String,
    /// Thousandths of a core.
    pub cpu_millicores: u32,
    /// MiB.
    pub ram_mib: u32,
    /// Seconds from the grant.
    pub duration_s: u32,
    /// Present once granted.
    pub cleared: Option<Cleared>,
    /// Present once the receipt is here.
    pub access: Option<Access>,
    /// Present once the machine was asked and its command had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_exit: Option<WorkloadExit>,
}

impl GrantFile {
    /// Whether nothing of the grant runs any more at `now_ms`, or it was told to end.
    #[must_use]
    pub fn is_over(&self, now_ms: u64) -> bool {
        let late = self.cleared.as_ref().is_some_and(|cleared| cleared.valid_to_ms <= now_ms);
        late || matches!(self.stage, Stage::Ended | Stage::Withdrawn)
    }

    /// What became of the key to log in with.
    #[must_use]
    pub fn key(&self, now_ms: u64) -> KeyState {
        match &self.access {
            None => KeyState::None,
            Some(_) if self.is_over(now_ms) => KeyState::Dead,
            Some(_) => KeyState::Live,
        }
    }
}

/// A grant's directory.
#[derive(Debug, Clone)]
pub struct Grant {
    dir: PathBuf,
    /// What is known.
    pub file: GrantFile,
}

impl Grant {
    /// Writes a request down before it is sent, so that it can be withdrawn or ended whatever happens.
    ///
    /// # Errors
    /// When the disk refuses; nothing must be sent then.
    pub fn create(home: &Home, mut file: GrantFile, key: &NodeKey) -> Result<Self> {
        file.version = VERSION;
        let dir = home.grants().join(file.grant.to_string());
        private_dir(&dir)?;
        let grant = Self { dir, file };
        key.save_new(&grant.dir.join("request.key")).or_fault("disk", || "cannot keep the request's key".into())?;
        grant.save()?;
        Ok(grant)
    }

    /// Keeps what another process needs to wait for the receipt: both are secret, and gone once it is here.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn keep_pending(&self, pending: &PendingRequest, node: &NodeKey) -> Result<()> {
        private_write(&self.dir.join(PENDING), &pending.to_secret_bytes())?;
        node.save_new(&self.dir.join(PENDING_NODE)).or_fault("disk", || "cannot keep the request's node".into())
    }

    /// What [`Grant::keep_pending`] kept.
    ///
    /// # Errors
    /// When it is gone, damaged, or others can read it.
    pub fn pending(&self) -> Result<(PendingRequest, NodeKey)> {
        let gone = || format!("the keys that open the receipt of {} are not here", self.short());
        let bytes = fs::read(self.dir.join(PENDING)).map(Zeroizing::new).or_input("grant_damaged", gone)?;
        let pending = PendingRequest::from_secret_bytes(&bytes).or_input("grant_damaged", gone)?;
        Ok((pending, load_key(&self.dir.join(PENDING_NODE))?))
    }

    /// Notes a change. The key of a grant that is over by it is deleted.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn update(&mut self, change: impl FnOnce(&mut GrantFile)) -> Result<()> {
        change(&mut self.file);
        self.save()?;
        self.bury(now_ms())
    }

    /// Deletes the key to log in with once the grant is over: nothing answers to it any more.
    fn bury(&self, now_ms: u64) -> Result<()> {
        if !self.file.is_over(now_ms) {
            return Ok(());
        }
        match fs::remove_file(self.key_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("the dead key {} cannot be deleted", self.key_path().display());
                Err(CliError::fault("disk", message).because(error))
            }
            _ => Ok(()),
        }
    }

    /// Keeps what a receipt says and holds, and what vouches for the machine: keys and evidence in files of their own.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn keep_receipt(&mut self, receipt: &SshAccessReceipt, posture: String, evidence: Option<&[u8]>) -> Result<()> {
        if let Some(evidence) = evidence {
            private_write(&self.evidence_path(), evidence)?;
        }
        private_write(&self.key_path(), &receipt.ssh_key_private)?;
        private_write(&self.known_hosts_path(), format!("{}\n", receipt.known_hosts_line()).as_bytes())?;
        let kept = self.update(|file| {
            file.stage = Stage::Ready;
            file.access = Some(Access {
                host: receipt.instance_host.clone(),
                port: receipt.instance_port,
                user: receipt.user.clone(),
                isolation: receipt.isolation.clone(),
                posture,
                quoted_host_key: evidence.map(|_| coalition::serde_hex::text(&receipt.ssh_host_key.0)),
            });
        });
        for secret in [PENDING, PENDING_NODE] {
            let _ = fs::remove_file(self.dir.join(secret));
        }
        kept
    }

    /// The key that signed the request.
    ///
    /// # Errors
    /// When it is gone or others can read it.
    pub fn request_key(&self) -> Result<NodeKey> {
        load_key(&self.dir.join("request.key"))
    }

    /// The private key to log in with.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        self.dir.join("id_ed25519")
    }

    /// The evidence of the machine's guest: a quote with its collateral.
    #[must_use]
    pub fn evidence_path(&self) -> PathBuf {
        self.dir.join("evidence.bin")
    }

    /// The host key the machine must show.
    #[must_use]
    pub fn known_hosts_path(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    /// The first digits of the id, as many as tell it from every other grant here and at least eight.
    #[must_use]
    pub fn short(&self) -> String {
        short(&self.file.grant)
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.file).or_fault("disk", || "cannot describe the grant".into())?;
        private_write(&self.dir.join("grant.json"), text.as_bytes())
    }

    fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("grant.json");
        let unreadable = || format!("cannot read grant {}", path.display());
        let size = fs::metadata(&path).or_input("grant_damaged", unreadable)?.len();
        if size > MAX_FILE_BYTES {
            return Err(CliError::input("grant_damaged", format!("{} has {size} bytes", path.display())));
        }
        let text = fs::read_to_string(&path).or_input("grant_damaged", unreadable)?;
        let file: GrantFile = serde_json::from_str(&text).or_input("grant_damaged", unreadable)?;
        Ok(Self { dir: dir.to_path_buf(), file })
    }
}

/// The first eight digits of an id: enough for a person with fewer than some thousand grants.
#[must_use]
pub fn short(id: &RequestId) -> String {
    id.to_string()[..8].to_owned()
}

/// Every grant of this home, newest first. Damaged ones are left out and named.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(home: &Home) -> Result<(Vec<Grant>, Vec<CliError>)> {
    let (mut grants, mut damaged) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(home.grants()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((grants, damaged)),
        Err(error) => return Err(CliError::fault("disk", "cannot list the grants").because(error)),
    };
    for entry in entries {
        let entry = entry.or_fault("disk", || "cannot list the grants".into())?;
        match Grant::load(&entry.path()) {
            Ok(grant) => {
                // Whoever looks finds no key of a grant that ran out meanwhile.
                damaged.extend(grant.bury(now_ms()).err());
                grants.push(grant);
            }
            Err(error) => damaged.push(error),
        }
    }
    grants.sort_by_key(|grant| (std::cmp::Reverse(grant.file.requested_ms), grant.file.grant));
    Ok((grants, damaged))
}

/// The grant a person means: its id, its first digits, or the newest when nothing is said.
///
/// # Errors
/// When none or several match; the message lists what there is.
pub fn find(home: &Home, wanted: Option<&str>) -> Result<Grant> {
    let (mut grants, _) = list(home)?;
    let Some(wanted) = wanted else {
        return match grants.is_empty() {
            true => Err(none(home)),
            false => Ok(grants.remove(0)),
        };
    };
    let digits = wanted.to_ascii_lowercase();
    if digits.len() < MIN_PREFIX || digits.len() > 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let message = format!("{wanted:?} is no grant: give its id or the first digits of it, at least {MIN_PREFIX}");
        return Err(CliError::input("unknown_grant", message).hint("`coalition grants` lists them"));
    }
    let mut matching = grants.into_iter().filter(|grant| grant.file.grant.to_string().starts_with(&digits));
    let Some(first) = matching.next() else {
        let message = format!("no grant requested from {} begins with {digits}", home.root().display());
        return Err(CliError::input("unknown_grant", message).hint("`coalition grants` lists them"));
    };
    let others: Vec<String> = matching.map(|grant| short(&grant.file.grant)).collect();
    if !others.is_empty() {
        let message = format!("{digits} fits several grants: {}, {}", short(&first.file.grant), others.join(", "));
        return Err(CliError::input("ambiguous_grant", message).hint("give more digits"));
    }
    Ok(first)
}

/// The id a person means, which need not be a grant of this home when it is given in full.
///
/// # Errors
/// As [`find`].
pub fn find_id(home: &Home, wanted: Option<&str>) -> Result<RequestId> {
    match wanted.filter(|text| text.len() == 64).map(coalition::parse_id) {
        Some(Ok(id)) => Ok(RequestId(id)),
        _ => find(home, wanted).map(|grant| grant.file.grant),
    }
}

fn none(home: &Home) -> CliError {
    let message = format!("no grant was requested from {}", home.root().display());
    CliError::input("unknown_grant", message).hint("ask for a machine: `coalition request --help`")
}

/// The requester's own identity, made when it is first needed: what `--as-member` shows and nothing else ever does.
///
/// # Errors
/// When the key file cannot be used.
pub fn own_identity(home: &Home) -> Result<coalition::MemberId> {
    let key = NodeKey::load_or_create(&home.identity())
        .or_input("key_unusable", || "the requester's identity cannot be used".into())?;
    Ok(coalition::MemberId::from_stable_id(UniqueId::hash(key.peer_id().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(byte: u8, requested_ms: u64) -> GrantFile {
        GrantFile {
            version: VERSION,
            grant: RequestId::from_bytes([byte; 32]),
            coalition: "c".into(),
            requested_ms,
            stage: Stage::Requested,
            image: "i".into(),
            cpu_millicores: 1_000,
            ram_mib: 256,
            duration_s: 600,
            cleared: None,
            access: None,
            workload_exit: None,
        }
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path())).unwrap();
        (dir, home)
    }

    #[test]
    fn a_grant_is_found_by_id_prefix_or_age() {
        let (_dir, home) = home();
        assert_eq!(find(&home, None).unwrap_err().code(), "unknown_grant");
        for (byte, at) in [(0xab, 1), (0xac, 3), (0x12, 2)] {
            Grant::create(&home, file(byte, at), &NodeKey::generate()).unwrap();
        }
        assert_eq!(find(&home, None).unwrap().file.requested_ms, 3, "the newest");
        assert_eq!(find(&home, Some("12")).unwrap().file.requested_ms, 2);
        assert_eq!(find(&home, Some("ABAB")).unwrap().file.requested_ms, 1);
        assert_eq!(find(&home, Some("ab")).unwrap().file.requested_ms, 1);
        for (wanted, code) in
            [("a", "unknown_grant"), ("zz", "unknown_grant"), ("99", "unknown_grant"), ("", "unknown_grant")]
        {
            assert_eq!(find(&home, Some(wanted)).unwrap_err().code(), code, "{wanted}");
        }
        Grant::create(&home, file(0x11, 4), &NodeKey::generate()).unwrap();
        let mut twin = file(0x11, 5);
        twin.grant = RequestId::from_bytes({
            let mut id = [0x11; 32];
            id[31] = 0;
            id
        });
        Grant::create(&home, twin, &NodeKey::generate()).unwrap();
        let ambiguous = find(&home, Some("1111")).unwrap_err();
        assert_eq!(ambiguous.code(), "ambiguous_grant");
        assert_eq!(find_id(&home, Some(&"77".repeat(32))).unwrap(), RequestId::from_bytes([0x77; 32]));
    }

    #[test]
    fn changes_survive_and_damage_is_named() {
        let (_dir, home) = home();
        let mut grant = Grant::create(&home, file(0xaa, 1), &NodeKey::from_bytes([3; 32])).unwrap();
        grant.update(|file| file.stage = Stage::Ended).unwrap();
        let read = find(&home, Some("aa")).unwrap();
        assert_eq!(read.file, grant.file);
        assert_eq!(read.request_key().unwrap().expose(), &[3; 32]);
        fs::write(home.grants().join(grant.file.grant.to_string()).join("grant.json"), "{").unwrap();
        let (grants, damaged) = list(&home).unwrap();
        assert_eq!((grants.len(), damaged.len()), (0, 1));
        assert!(damaged[0].to_string().contains("grant.json"), "{}", damaged[0]);
    }

    #[test]
    fn a_key_dies_with_its_grant_and_is_deleted() {
        let (_dir, home) = home();
        let over = |byte, change: fn(&mut GrantFile)| {
            let mut grant = Grant::create(&home, file(byte, 1), &NodeKey::generate()).unwrap();
            assert_eq!(grant.file.key(now_ms()), KeyState::None);
            private_write(&grant.key_path(), b"secret").unwrap();
            let access = r#"{"host":"h","port":1,"user":"root","isolation":"i","posture":"not attested"}"#;
            grant.update(|file| file.access = Some(serde_json::from_str(access).unwrap())).unwrap();
            assert!(grant.key_path().exists() && grant.file.key(now_ms()) == KeyState::Live);
            grant.update(change).unwrap();
            (grant.key_path().exists(), grant.file.key(now_ms()))
        };
        assert_eq!(over(0xa1, |file| file.stage = Stage::Ended), (false, KeyState::Dead));
        assert_eq!(over(0xa2, |file| file.stage = Stage::Ready), (true, KeyState::Live));
        // One whose time ran out while nobody looked: the next look deletes the key.
        let mut grant = Grant::create(&home, file(0xa3, 2), &NodeKey::generate()).unwrap();
        grant.file.cleared =
            serde_json::from_str(r#"{"provider":"p","offer":"o","region":"r","rate":"1","valid_to_ms":1}"#).ok();
        assert!(grant.file.cleared.is_some());
        grant.save().unwrap();
        private_write(&grant.key_path(), b"secret").unwrap();
        find(&home, Some("a3")).unwrap();
        assert!(!grant.key_path().exists());
    }

    #[test]
    fn the_own_identity_stays() {
        let (_dir, home) = home();
        assert_eq!(own_identity(&home).unwrap(), own_identity(&home).unwrap());
    }
}
