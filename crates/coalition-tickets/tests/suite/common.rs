//! One development root with its guest, one coalition with its issuer, one door.

use std::sync::{Arc, LazyLock};

use coalition::{Mrtd, PublishedConfig, UniqueId};
use coalition_attest::{
    Collateral, DevelopmentGuest, DevelopmentRoot, Measurements, Nonce, Policy, QuoteSource, TrustRoot,
};
use coalition_tickets::{
    Admission, Bearer, Challenges, Charter, Issuer, Presentation, Refused, Resources, TdxTicket, TicketValidator,
};
use ed25519_dalek::SigningKey;

/// A moment inside the development collateral's validity.
pub const NOW: u64 = 1_800_000_000;
pub const MRTD: Mrtd = Mrtd([0x4d; 48]);

pub fn id(n: u8) -> UniqueId {
    UniqueId::from_bytes([n; 32])
}

/// The door of organism 2 on network 1, and the peer with key 3 before it.
pub fn bearer() -> Bearer {
    Bearer { network: id(1), audience: id(2), peer: [3; 32] }
}

pub fn root() -> &'static DevelopmentRoot {
    static ROOT: LazyLock<DevelopmentRoot> = LazyLock::new(|| DevelopmentRoot::generate().unwrap());
    &ROOT
}

pub fn trust_root() -> TrustRoot {
    root().trust_root().unwrap()
}

pub fn guest() -> &'static DevelopmentGuest {
    static GUEST: LazyLock<DevelopmentGuest> = LazyLock::new(|| root().guest(Measurements::of_mrtd(MRTD)).unwrap());
    &GUEST
}

pub fn collateral() -> Collateral {
    root().collateral(NOW).unwrap()
}

/// The challenges of the door under test.
pub fn challenges() -> Arc<Challenges> {
    Arc::new(Challenges::new([9; 32]))
}

pub fn policy() -> Policy {
    Policy::servers(trust_root()).require_mrtd(MRTD).max_quote_age_s(60).unwrap()
}

/// What a door knows that can judge everything but issuers and lookups.
pub fn resources() -> Resources {
    Resources::new().with_root(trust_root()).with_policy(policy()).with_nonces(challenges())
}

pub fn enforced(validator: &TicketValidator) -> Admission {
    validator.enforce(&resources()).unwrap()
}

/// A fresh attestation of a bearer, as that bearer would show it.
pub fn attested(bearer: &Bearer) -> Presentation {
    attested_by(guest(), bearer, challenges().draw(bearer, NOW))
}

pub fn attested_by(guest: &dyn QuoteSource, bearer: &Bearer, nonce: Nonce) -> Presentation {
    let ticket = TdxTicket::quote(guest, Some(collateral()), bearer, nonce).unwrap();
    Presentation::empty().with_tdx(&ticket).unwrap()
}

pub fn code(result: Result<u64, Refused>) -> &'static str {
    result.unwrap_err().code()
}

pub fn issuer_key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub fn charter(keys: &[u8]) -> Charter {
    let keys = keys.iter().map(|n| issuer_key(*n).verifying_key().to_bytes()).collect();
    Charter::new(3_600, keys).unwrap()
}

/// A coalition whose issuer works under this charter.
pub fn coalition(name: &str, charter: &Charter) -> PublishedConfig {
    PublishedConfig::builder(name).ticket_issuer("issuer", vec![charter.rule()]).build().unwrap()
}

pub fn issuer(name: &str, keys: &[u8]) -> Issuer {
    let charter = charter(keys);
    Issuer::of(&coalition(name, &charter), &charter, issuer_key(keys[0])).unwrap()
}
