//! Links between members and clients: loss, delay, duplication, and cuts of every shape, one-way ones included.

use super::{
    check::Tally,
    plan::{Ms, Plan},
    rng::Rng,
};

#[derive(Debug)]
pub(super) struct Network {
    /// How many partitions cut the way from one node to another.
    cuts: Vec<Vec<u32>>,
    partitions: Vec<Vec<(usize, usize)>>,
    members: usize,
}

impl Network {
    pub(super) fn new(members: usize, clients: usize) -> Self {
        let nodes = members + clients;
        Self { cuts: vec![vec![0; nodes]; nodes], partitions: Vec::new(), members }
    }

    pub(super) fn is_open(&self, from: usize, to: usize) -> bool {
        self.cuts[from][to] == 0
    }

    pub(super) fn is_open_both_ways(&self, a: usize, b: usize) -> bool {
        a == b || (self.is_open(a, b) && self.is_open(b, a))
    }

    /// When the copies of a message arrive: none, one or several.
    pub(super) fn send(
        &self,
        plan: &Plan,
        calm: bool,
        rng: &mut Rng,
        tally: &mut Tally,
        (from, to): (usize, usize),
    ) -> Vec<Ms> {
        if !self.is_open(from, to) {
            tally.count("message into a cut");
            return Vec::new();
        }
        if calm {
            return vec![rng.range(1, 15)];
        }
        if rng.percent(plan.loss) {
            tally.count("message lost");
            return Vec::new();
        }
        let mut copies = vec![Self::delay(plan, rng, tally)];
        if rng.percent(plan.duplicates) {
            tally.count("message duplicated");
            copies.push(Self::delay(plan, rng, tally));
        }
        copies
    }

    fn delay(plan: &Plan, rng: &mut Rng, tally: &mut Tally) -> Ms {
        if rng.percent(plan.late) {
            tally.count("message late");
            return rng.range(100, 2_000);
        }
        rng.range(1, 30)
    }

    /// Cuts something, and says which partition to heal later.
    pub(super) fn partition(&mut self, rng: &mut Rng) -> (usize, &'static str) {
        let all: Vec<usize> = (0..self.cuts.len()).collect();
        let members: Vec<usize> = (0..self.members).collect();
        let (shape, pairs) = match rng.range(0, 7) {
            0 => {
                let alone = rng.index(self.members);
                let others: Vec<usize> = all.into_iter().filter(|node| *node != alone).collect();
                ("one member alone", both(&[alone], &others))
            }
            1 => {
                let mut nodes = all;
                rng.shuffle(&mut nodes);
                let (a, b) = nodes.split_at(nodes.len() / 2);
                ("two halves", both(a, b))
            }
            2 => {
                let deaf = rng.index(self.members);
                let pairs = members.iter().filter(|from| **from != deaf).map(|from| (*from, deaf)).collect();
                ("a member that hears nobody", pairs)
            }
            3 => {
                let mute = rng.index(self.members);
                let pairs = members.iter().filter(|to| **to != mute).map(|to| (mute, *to)).collect();
                ("a member that nobody hears", pairs)
            }
            4 => {
                let mut nodes = members;
                rng.shuffle(&mut nodes);
                nodes.pop(); // the bridge
                let (a, b) = nodes.split_at(nodes.len() / 2);
                ("two groups with a bridge", both(a, b))
            }
            5 => {
                let mut pairs: Vec<(usize, usize)> = Vec::new();
                for (i, from) in members.iter().enumerate() {
                    let next = members[(i + 1) % members.len()];
                    let before = members[(i + members.len() - 1) % members.len()];
                    pairs.extend(members.iter().filter(|to| **to != next && **to != before).map(|to| (*from, *to)));
                }
                ("a ring", pairs)
            }
            _ => {
                let client = self.members + rng.index(self.cuts.len() - self.members);
                let seen = rng.some(&members);
                let others: Vec<usize> = members.into_iter().filter(|member| !seen.contains(member)).collect();
                ("a client cut from some", both(&[client], &others))
            }
        };
        for (from, to) in &pairs {
            self.cuts[*from][*to] += 1;
        }
        self.partitions.push(pairs);
        (self.partitions.len() - 1, shape)
    }

    pub(super) fn heal(&mut self, partition: usize) {
        for (from, to) in std::mem::take(&mut self.partitions[partition]) {
            self.cuts[from][to] -= 1;
        }
    }

    pub(super) fn heal_all(&mut self) {
        (0..self.partitions.len()).for_each(|partition| self.heal(partition));
    }
}

fn both(a: &[usize], b: &[usize]) -> Vec<(usize, usize)> {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b)));
    pairs.flat_map(|(a, b)| [(a, b), (b, a)]).filter(|(a, b)| a != b).collect()
}
