//! What `retire` and `members hand-over` share: whose keys are at hand, and approvals and rosters in files.

use std::{fs, path::Path};

use coalition::{Roster, RosterMember};
use coalition_universe::NodeKey;
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{
    cli::Approvers,
    devnet::keys::key_file,
    error::{CliError, Context, Result},
    home::Home,
    roles::config::load_key,
};

/// A roster as a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RosterFile {
    pub(super) members: Vec<RosterMember>,
}

pub(super) fn read_roster(path: &Path) -> Result<Roster> {
    let shown = path.display();
    let text = fs::read_to_string(path).or_input("roster_unreadable", || format!("cannot read {shown}"))?;
    let file: RosterFile = toml::from_str(&text).or_input("roster_invalid", || format!("{shown} is no roster"))?;
    Roster::new(file.members).or_input("roster_invalid", || format!("{shown} is no valid roster"))
}

/// A member's checkpoint key, and its place in the roster in force.
pub(super) struct Signer {
    pub(super) key: SigningKey,
    pub(super) seat: u8,
}

/// The keys given, else all checkpoint keys of this home; none when approvals are given instead.
pub(super) fn signers(home: &Home, given: &Approvers, roster: &Roster) -> Result<Vec<Signer>> {
    let mut keys: Vec<NodeKey> = given.key.iter().map(|path| load_key(path)).collect::<Result<_>>()?;
    if keys.is_empty() && given.approval.is_empty() {
        let paths = roster.members().iter().map(|member| home.keys().join(key_file(&member.name, "checkpoint")));
        keys = paths.filter(|path| path.exists()).map(|path| load_key(&path)).collect::<Result<_>>()?;
        if keys.is_empty() {
            let message = format!("no member's checkpoint key is in {}", home.keys().display());
            let hint = "name key files with --key, or approvals with --approval";
            return Err(CliError::input("no_key", message).hint(hint));
        }
    }
    keys.iter().map(|key| signer(key, roster)).collect()
}

fn signer(key: &NodeKey, roster: &Roster) -> Result<Signer> {
    let public = key.peer_id();
    let seat = roster.members().iter().position(|member| &member.checkpoint_key == public.as_bytes());
    let seat = seat.and_then(|seat| u8::try_from(seat).ok()).ok_or_else(|| {
        CliError::input("wrong_key", format!("{public} is no checkpoint key of the roster"))
            .hint("`coalition members` shows the roster in force")
    })?;
    Ok(Signer { key: SigningKey::from_bytes(key.expose()), seat })
}

/// What others printed: the files given, an approval a line. `form` says what a line is, `command` what prints it.
pub(super) fn read<T>(
    given: &Approvers,
    form: &str,
    command: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for path in &given.approval {
        let shown = path.display();
        let text = fs::read_to_string(path).or_input("approval_unreadable", || format!("cannot read {shown}"))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let wrong = || {
                let message = format!("{shown}: {line:?} is no approval: write {form}");
                CliError::input("approval_invalid", message)
                    .hint(format!("`coalition {command} … --approve-only` prints approvals"))
            };
            all.push(parse(line).ok_or_else(wrong)?);
        }
    }
    Ok(all)
}

/// A signature as 128 hex digits.
pub(super) fn signature(digits: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}
