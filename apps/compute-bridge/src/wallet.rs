//! What the bridge shows where a market admits writers by ticket: tickets issued to it, and an attestation of its platform.

use std::path::PathBuf;

use coalition_organism::TicketSource;
use coalition_tickets::presentation::MAX_TICKETS;
use coalition_tickets::{Bearer, IssuedTicket, Nonce, Presentation, TdxTicket};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::fleet::chain;
use crate::platform::Platform;

/// The bridge's tickets. Files are read again each time, so that a new ticket needs no new start.
#[derive(Clone, Debug, Default)]
pub struct Wallet {
    /// Files with issued tickets.
    pub files: Vec<PathBuf>,
    /// Where attestations come from.
    pub platform: Option<Platform>,
}

impl Wallet {
    /// Whether there is anything to show.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.platform.is_none()
    }

    async fn gather(self, bearer: Bearer, challenge: Nonce) -> Result<Presentation, String> {
        let mut shown = Presentation::empty();
        if let Some(platform) = &self.platform {
            let report_data = TdxTicket::report_data(&bearer, challenge.value);
            // A door may take an issued ticket instead.
            match platform.show_aside(report_data).await {
                Ok(made) => {
                    let ticket = TdxTicket::of_evidence(challenge, made.bytes);
                    shown = shown.with_tdx(&ticket).map_err(|error| chain(&error))?;
                }
                Err(error) => tracing::warn!(problem = chain(&error), "no attestation is shown"),
            }
        }
        for file in self.files.iter().take(MAX_TICKETS - shown.tickets().len()) {
            match IssuedTicket::read(file) {
                Ok(ticket) => shown = shown.with_issued(ticket),
                Err(error) => tracing::warn!(problem = chain(&error), "a ticket is not shown"),
            }
        }
        Ok(shown)
    }
}

impl TicketSource for Wallet {
    fn present(&self, bearer: Bearer, challenge: Nonce) -> BoxFuture<'static, Result<Presentation, String>> {
        self.clone().gather(bearer, challenge).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coalition::{Mrtd, PublishedConfig, UniqueId};
    use coalition_attest::{DevelopmentRoot, Policy};
    use coalition_tickets::{Charter, Door, Issuer, Or, Resources, Tdx, TicketValidator};
    use ed25519_dalek::SigningKey;

    use super::*;

    #[tokio::test]
    async fn a_door_takes_what_the_wallet_shows() {
        let id = |n| UniqueId::from_bytes([n; 32]);
        let now_s = crate::now_ms() / 1_000;
        let key = SigningKey::from_bytes(&[1; 32]);
        let charter = Charter::new(600, vec![key.verifying_key().to_bytes()]).unwrap();
        let config = PublishedConfig::builder("c").ticket_issuer("issuer", vec![charter.rule()]).build().unwrap();
        let root = Arc::new(DevelopmentRoot::generate().unwrap());
        let policy = Policy::servers(root.trust_root().unwrap()).require_mrtd(Mrtd([7; 48]));
        let policy = policy.max_quote_age_s(60).unwrap();
        let issued = coalition::AclRule::Issuer(config.ticket_issuer_root().unwrap());
        let resources = Resources::new().with_issuer(&config, charter.clone()).unwrap();
        let both = TicketValidator::new().require_ticket(Tdx::under(policy.clone())).require_ticket(issued);
        let either = TicketValidator::new().require_ticket(Or::of([Tdx::under(policy)]).or(issued));
        let strict = Door::new((id(1), id(2)), &both, resources.clone(), [5; 32]).unwrap();
        let lenient = Door::new((id(1), id(2)), &either, resources, [5; 32]).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("market.ticket");
        let peer = [3; 32];
        let ticket = Issuer::of(&config, &charter, key).unwrap().issue(&strict.bearer(peer), now_s, 300).unwrap();
        std::fs::write(&file, format!("{}\n", ticket.as_str())).unwrap();
        let platform = Platform::development(root, Mrtd([7; 48])).unwrap();
        let wallet = Wallet { files: vec![file, dir.path().join("missing")], platform: Some(platform) };
        let (strict, lenient) = (&strict, &lenient);
        let show = |wallet: Wallet| async move {
            let challenge = strict.challenge(peer, now_s);
            let shown = wallet.present(strict.bearer(peer), challenge).await.unwrap().to_bytes().unwrap();
            (strict.present(peer, &shown, now_s).is_ok(), lenient.present(peer, &shown, now_s).is_ok())
        };
        assert_eq!(show(wallet.clone()).await, (true, true));
        assert_eq!(show(Wallet { platform: None, ..wallet.clone() }).await, (false, true));
        assert_eq!(show(Wallet { files: vec![], platform: None }).await, (false, false));
    }
}
