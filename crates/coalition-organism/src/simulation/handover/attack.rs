//! What the attacker serves: entries nobody wrote, under heads it signed itself.

use coalition_log::{
    Draft, Entry,
    checkpoint::{Checkpoint, SignatureLine, SignedCheckpoint},
    handover::{HANDOVER_KIND, HandoverProof},
    tree::{consistency_proof, inclusion_proof},
};

use super::{Run, STRANGERS, Served, approve, organism, sign};
use crate::simulation::disk::Log;

fn bogus(index: u64, kind: &str, body: Vec<u8>) -> Entry {
    Entry { kind: kind.into(), body, ..Draft::new("sim.many", vec![1]).into_entry(index, None, 1) }
}

impl Run {
    /// What the attacker serves: entries nobody wrote behind what the reader has, under a head it signed itself.
    pub(super) fn forged(&mut self, reader: usize) -> Option<Served> {
        let known = usize::try_from(self.readers[reader].core.chain().epoch()).unwrap();
        let (next, from) = (self.readers[reader].core.next_index(), self.readers[reader].core.head_size());
        let mut fork = Log::default();
        self.log.range(0, from, usize::MAX).into_iter().for_each(|entry| fork.push(entry.into()));
        let mut handovers = Vec::new();
        let signers: Vec<usize> = if self.rng.percent(50) {
            // An old roster, of which it may have a quorum by now. Not the newest the reader knows: that one it trusts.
            let epoch = self.rng.index(known.max(1));
            self.tally.count("fork by an old roster served");
            let trusted = &self.rosters[known];
            let mut spare = trusted.len() - Self::faults(trusted) - 1;
            let may_sign = |member: &usize| {
                let is_trusted = trusted.contains(member);
                let may = epoch < known && self.bad.contains(member) && (!is_trusted || spare > 0);
                spare -= usize::from(may && is_trusted);
                may
            };
            self.rosters[epoch].iter().copied().filter(may_sign).collect()
        } else {
            // Its own roster, which a minority of the reader's roster hands over to.
            let own: Vec<usize> = (STRANGERS..STRANGERS + 4).collect();
            let now = self.rosters[known].clone();
            let most = now.len() - Self::faults(&now) - 1;
            let minority: Vec<usize> =
                now.iter().copied().filter(|member| self.bad.contains(member)).take(most).collect();
            let approved = approve(known as u64 + 1, &now, &own, &minority);
            fork.push(bogus(from, HANDOVER_KIND, approved.to_bytes()).encode().unwrap().into());
            let head = Checkpoint { organism: organism(), size: from + 1, root: fork.root_at(from + 1)? };
            let signatures = minority.iter().map(|member| sign(*member, &head)).collect::<Vec<_>>();
            let signed = SignedCheckpoint { checkpoint: head, signatures };
            let path = inclusion_proof(&fork, from, from + 1).ok()?;
            let entry = fork.range(from, from + 1, usize::MAX).pop()?;
            handovers.push(HandoverProof { entry, path, checkpoint: signed.to_string() });
            self.tally.count("false handover served");
            own
        };
        let size = fork.size() + 1;
        fork.push(bogus(size - 1, "sim.many", vec![9]).encode().unwrap().into());
        let head = Checkpoint { organism: organism(), size, root: fork.root_at(size)? };
        let signatures: Vec<SignatureLine> = signers.iter().map(|member| sign(*member, &head)).collect();
        Some(Served {
            handovers,
            head: SignedCheckpoint { checkpoint: head, signatures },
            head_proof: consistency_proof(&fork, from, size).ok()?,
            entries: fork.range(next, size, usize::MAX),
        })
    }
}
