//! Statements that principals sign, and how.
//!
//! The signed bytes are `"coalition.compute/statement/1" ‖ 0x00 ‖ organism id (32) ‖ u8 length ‖ label ‖ postcard of the
//! statement`. The organism id keeps a statement from being played at another market, the label from being read as
//! another kind of statement. Replay at the same market is stopped by the statements themselves: cards carry a growing
//! sequence, logs, extensions and reports a number, inventories a place in the log, and everything else happens at most once in the life of a request.

pub use coalition::codec::SignatureBytes;
use coalition::{AlmanacTick, ProviderId, RequestId, UniqueId};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::codec;
use crate::types::{
    AnswerExtension, ComputeLog, ComputeRequest, ExtendGrant, Invalid, MAX_EVIDENCE_BYTES, ProviderCard, RefusalReason,
    ReportUsage, StateInventory,
};

const DOMAIN: &[u8] = b"coalition.compute/statement/1\0";

/// Something a principal signs.
pub trait Statement: Serialize + DeserializeOwned {
    /// Short name that keeps kinds of statement apart; at most 255 bytes.
    const LABEL: &'static str;

    /// Checks the stated limits of the fields.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field that breaks one.
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A statement with the key that signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// Ed25519 public key of the signer.
    #[serde(with = "codec::hex_bytes")]
    pub key: [u8; 32],
    /// Signature over [`Signed::signed_bytes`].
    pub signature: SignatureBytes,
    /// What was signed.
    pub statement: T,
}

/// The signature is not the key's over this statement for this organism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify for this statement, key and organism")]
pub struct BadSignature;

impl<T: Statement> Signed<T> {
    /// Signs `statement` for the Compute organism `organism`, after checking it.
    ///
    /// # Errors
    /// [`Invalid`] when the statement breaks a stated limit; nothing is signed then.
    pub fn sign(statement: T, key: &SigningKey, organism: &UniqueId) -> Result<Self, Invalid> {
        statement.check()?;
        let signature = key.sign(&Self::signed_bytes(&statement, organism));
        let signature = SignatureBytes::new(&signature.to_bytes());
        Ok(Self { key: key.verifying_key().to_bytes(), signature, statement })
    }

    /// The bytes a signature covers.
    #[must_use]
    pub fn signed_bytes(statement: &T, organism: &UniqueId) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(DOMAIN);
        out.extend_from_slice(organism.as_bytes());
        out.push(u8::try_from(T::LABEL.len()).expect("labels are short constants of this crate"));
        out.extend_from_slice(T::LABEL.as_bytes());
        codec::append(out, statement)
    }

    /// Verifies the signature, strictly (no small-order keys, one accepted form).
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, organism: &UniqueId) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.key).map_err(|_| BadSignature)?;
        let signature = Signature::from_bytes(&self.signature.to_bytes());
        key.verify_strict(&Self::signed_bytes(&self.statement, organism), &signature).map_err(|_| BadSignature)
    }
}

/// A provider publishes or replaces its card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostCard {
    /// Larger than in every card statement of this provider before. Wall-clock milliseconds are a good choice: they
    /// survive the loss of the provider's disk.
    pub sequence: u64,
    /// The card.
    pub card: ProviderCard,
}

/// A provider takes its card out of the market. Live grants stay its duty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deregister {
    /// Larger than in every card statement of this provider before.
    pub sequence: u64,
    /// The provider.
    pub provider: ProviderId,
}

/// A provider asks for a challenge: the entry that answers this is what its next quote must contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskChallenge {
    /// Larger than in every card statement of this provider before.
    pub sequence: u64,
    /// The provider.
    pub provider: ProviderId,
    /// The Almanac tick the provider saw when it asked; limits how long this can be played again.
    pub asked_at: AlmanacTick,
}

/// A provider shows a quote with its last challenge in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attest {
    /// Larger than in every card statement of this provider before.
    pub sequence: u64,
    /// The provider.
    pub provider: ProviderId,
    /// Hash of the provider's configuration, which the quote binds.
    pub config: UniqueId,
    /// Quote and collateral, as `coalition-attest` encodes evidence; at most [`crate::types::MAX_EVIDENCE_BYTES`].
    pub evidence: Vec<u8>,
}

/// A provider gives back a grant it does not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefuseGrant {
    /// The grant.
    pub grant_id: RequestId,
    /// The provider.
    pub provider: ProviderId,
    /// Why.
    pub reason: RefusalReason,
}

/// A provider states that the workload runs and the receipt was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeGrant {
    /// The grant.
    pub grant_id: RequestId,
    /// The provider.
    pub provider: ProviderId,
}

/// The requester takes back a request that has no grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawRequest {
    /// The request.
    pub request_id: RequestId,
}

/// The requester wants its grant stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndGrant {
    /// The grant.
    pub grant_id: RequestId,
}

impl Statement for PostCard {
    const LABEL: &'static str = "post-card";
    fn check(&self) -> Result<(), Invalid> {
        self.card.check()
    }
}

impl Statement for ComputeRequest {
    const LABEL: &'static str = "request";
    fn check(&self) -> Result<(), Invalid> {
        Self::check(self)
    }
}

impl Statement for AskChallenge {
    const LABEL: &'static str = "ask-challenge";
}

impl Statement for Attest {
    const LABEL: &'static str = "attest";
    fn check(&self) -> Result<(), Invalid> {
        Invalid::check_range("evidence size", self.evidence.len() as u64, 1, MAX_EVIDENCE_BYTES as u64)
    }
}

impl Statement for Deregister {
    const LABEL: &'static str = "deregister";
}

impl Statement for RefuseGrant {
    const LABEL: &'static str = "refuse-grant";
}

impl Statement for ServeGrant {
    const LABEL: &'static str = "serve-grant";
}

impl Statement for WithdrawRequest {
    const LABEL: &'static str = "withdraw-request";
}

impl Statement for EndGrant {
    const LABEL: &'static str = "end-grant";
}

impl Statement for ComputeLog {
    const LABEL: &'static str = "log";
}

impl Statement for ExtendGrant {
    const LABEL: &'static str = "extend-grant";
    fn check(&self) -> Result<(), Invalid> {
        Invalid::check_range("extra_sec", u64::from(self.extra_sec), 1, u64::from(u32::MAX))
    }
}

impl Statement for AnswerExtension {
    const LABEL: &'static str = "answer-extension";
}

impl Statement for StateInventory {
    const LABEL: &'static str = "inventory";
}

impl Statement for ReportUsage {
    const LABEL: &'static str = "report-usage";
}
