//! Measures the machine alone: `cargo run --release -p coalition-compute --example load`.
//!
//! Prints how many requests a second one core admits, clears and folds, and what a batch costs while many open requests
//! fit no offer.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program")]

use std::time::Instant;

use coalition::{AlmanacTick, ProviderId, UniqueId};
use coalition_compute::*;
use coalition_log::{Context, Draft, Machine};
use ed25519_dalek::SigningKey;

struct Market {
    machine: ComputeMachine,
    organism: UniqueId,
    cx: Context,
    next: u64,
}

impl Market {
    fn new() -> Self {
        let organism = UniqueId::hash(b"load");
        let mut params = ComputeParams::standard(1_000);
        params.max_open_per_requester = params.max_open_requests;
        let machine = ComputeMachine::new(organism, params).unwrap();
        Self { machine, organism, cx: Context { height: 0, time_ms: 1_700_000_000_000, tick: 1 }, next: 0 }
    }

    fn commit(&mut self, drafts: Vec<Draft>) {
        for draft in drafts {
            let entry = draft.into_entry(self.next, Some(self.cx.tick), self.cx.time_ms);
            self.next += 1;
            self.machine.evolve(&entry);
        }
    }

    fn batch(&mut self, commands: &[Vec<u8>]) {
        for command in commands {
            let drafts = self.machine.decide(&self.cx, command).unwrap();
            self.commit(drafts);
        }
        while let Some(drafts) = self.machine.round(&self.cx) {
            self.commit(drafts);
        }
    }

    fn card(&self, seed: u32) -> Vec<u8> {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&seed.to_be_bytes());
        let key = SigningKey::from_bytes(&bytes);
        let offer = |name: &str| Offer {
            name: name.parse().unwrap(),
            capabilities: Capabilities {
                regions: vec!["home-01".parse().unwrap()],
                tdx_capable: false,
                mrtds: vec![],
                max_cpu_millicores: 4_000_000,
                max_ram_mib: 4_000_000,
                max_instances: 4_000,
                instance_cpu_millicores: 64_000,
                instance_ram_mib: 65_536,
            },
            declared_rates: DeclaredRates { core_hour: "0.04".parse().unwrap(), gib_hour: "0.01".parse().unwrap() },
        };
        let card = ProviderCard {
            provider_id: ProviderId::from_public_key(&key.verifying_key().to_bytes()),
            provider_peer: [1; 32],
            shuffle_reply: UniqueId::hash(b"reply"),
            offers: vec![offer("one"), offer("two")],
            attestation: None,
            refreshed_at: AlmanacTick(1),
        };
        let signed = Signed::sign(PostCard { sequence: 1, card }, &key, &self.organism).unwrap();
        Command::RegisterCard(signed).to_bytes()
    }

    fn request(&self, number: u32, region: &str) -> Vec<u8> {
        let key = SigningKey::from_bytes(&[9; 32]);
        let signer = key.verifying_key().to_bytes();
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&number.to_be_bytes());
        let request = ComputeRequest {
            request_id: request_id(&self.organism, &signer, &nonce),
            nonce,
            requester: anonymous_requester(&signer),
            workload: UniqueId::hash(b"workload"),
            pin: None,
            image_hash: UniqueId::hash(b"image"),
            cpu_millicores: 1_000,
            ram_mib: 256,
            duration_sec: 60,
            region: Some(region.parse().unwrap()),
            tdx_required: false,
            pinned_mrtd: None,
            max_rate: "1".parse().unwrap(),
            settlement: UniqueId::hash(b"settlement"),
            deadline: AlmanacTick(1_000),
            bearer_pointer: UniqueId::hash(b"envelope"),
        };
        Command::SubmitRequest(Signed::sign(request, &key, &self.organism).unwrap()).to_bytes()
    }
}

fn main() {
    for providers in [1, 16, 256] {
        let mut market = Market::new();
        let cards: Vec<_> = (0..providers).map(|seed| market.card(seed)).collect();
        market.batch(&cards);
        let commands: Vec<_> = (0..2_000).map(|n| market.request(n, "home-01")).collect();
        let start = Instant::now();
        for batch in commands.chunks(50) {
            market.cx.time_ms += 100;
            market.batch(batch);
        }
        let each = start.elapsed() / 2_000;
        println!(
            "{providers:>4} providers, two offers each: {each:?} per request admitted, cleared and folded (one member)"
        );

        let stuck: Vec<_> = (5_000..6_000).map(|n| market.request(n, "mars-1")).collect();
        market.batch(&stuck);
        let start = Instant::now();
        for _ in 0..20 {
            market.cx.time_ms += 100;
            market.batch(&[]);
            let _ = market.machine.wake_at_ms(&market.cx);
        }
        let each = start.elapsed() / 20;
        println!("{providers:>4} providers: {each:?} per idle batch with 1,000 open requests nobody can serve");
    }
}
