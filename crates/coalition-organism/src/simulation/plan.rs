//! What a seed asks for, and the mistakes the harness can plant.

use std::collections::BTreeSet;

use super::rng::Rng;

/// Simulated milliseconds.
pub(super) type Ms = u64;

/// Mistakes that somebody could make in the real code. Each is made by the harness around the real code, so that no
/// production path knows of it, and each must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    /// Members take one cosignature less than the quorum for a certificate.
    QuorumOffByOne,
    /// A write is acknowledged when it is executed, not when it is certified.
    AckBeforeCertified,
    /// The guard is written after the signature has left, and so never made durable before it.
    GuardNotDurable,
    /// A head is signed before its entries are on disk.
    SignBeforeSync,
    /// The engine is told that a batch is done before its entries are on disk.
    AcknowledgeBeforeSync,
    /// A batch that was executed before a crash is executed again.
    ExecuteTwice,
    /// A restart folds the machine's state, but not the table of writes.
    ForgetWrites,
    /// A restart folds the machine's state, but not the retirement.
    ForgetRetirement,
    /// A restart forgets which tick was current when.
    ForgetTicks,
    /// A certificate another member sent is believed.
    CertificateUnverified,
    /// Cosignatures are counted without being verified.
    LineUnverified,
    /// A certificate is published before this member has the entries under it.
    PublishBeyondLog,
    /// One member's machine depends on something that is not in the log.
    Nondeterministic,
    /// One member takes its own clock for the committee's.
    OwnClock,
    /// Readers take the entries they are served without a proof.
    RangeUnproven,
    /// Readers take whatever head the next member has, also an older one, and start over from it.
    ReaderGoesBack,
    /// Writers take one member's word for it that a write is certified.
    AckUnverified,
    /// Contradicting cosignatures are dropped, not kept as a proof.
    EquivocationIgnored,
    /// A member sends each cosignature once.
    NoRepeat,
    /// A member with every entry that missed the last certificate is not told about it.
    NoHelpAtTheSameSize,
    /// A state is taken up without its table of writes.
    RestoreForgetsWrites,
    /// A state is written before the last entry it claims to cover is folded.
    StateBeforeLastEntry,
    /// A member takes a state as it stands on its disk, without comparing it with what was certified.
    StateUnverified,
    /// A reader takes a state as it is served.
    ReaderTakesAnyState,
    /// A member that is asked for what is settled answers at once, with what it knows to be certified.
    SettledAtOnce,
    /// Whoever asks what is settled is content with a member less than a quorum.
    SettledByTooFew,
    /// A restart cuts off one record more than what was torn.
    TailCutTooFar,
    /// A member keeps no guard, and repeats its signature of the last certified head instead of that of its newest.
    NoGuard,
    /// Who is named on a head that contradicts one's own is taken for a liar, though the signature does not verify.
    GuiltUnverified,
    /// What comes after a retirement's last entry is executed.
    EndIgnored,
    /// More members lie than any committee survives: a quorum.
    QuorumLies,
    /// What an ordering engine syncs is not durable. Needs engines.
    VotesNotDurable,
}

impl Mutation {
    pub(super) const ALL: [Self; 31] = [
        Self::QuorumOffByOne,
        Self::AckBeforeCertified,
        Self::GuardNotDurable,
        Self::SignBeforeSync,
        Self::AcknowledgeBeforeSync,
        Self::ExecuteTwice,
        Self::ForgetWrites,
        Self::ForgetRetirement,
        Self::ForgetTicks,
        Self::CertificateUnverified,
        Self::LineUnverified,
        Self::PublishBeyondLog,
        Self::Nondeterministic,
        Self::OwnClock,
        Self::RangeUnproven,
        Self::ReaderGoesBack,
        Self::AckUnverified,
        Self::EquivocationIgnored,
        Self::NoRepeat,
        Self::NoHelpAtTheSameSize,
        Self::RestoreForgetsWrites,
        Self::StateBeforeLastEntry,
        Self::StateUnverified,
        Self::ReaderTakesAnyState,
        Self::SettledAtOnce,
        Self::SettledByTooFew,
        Self::TailCutTooFar,
        Self::NoGuard,
        Self::GuiltUnverified,
        Self::EndIgnored,
        Self::QuorumLies,
    ];
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) members: usize,
    /// Members that lie.
    pub(super) liars: BTreeSet<usize>,
    /// A member whose disk comes back older than its guard. Counts as one of the f.
    pub(super) rolled_back: Option<usize>,
    /// 2: the first is the coalition's clock.
    pub(super) organisms: usize,
    pub(super) readers: usize,
    pub(super) writers: usize,
    pub(super) writes: u64,
    /// How long things go wrong.
    pub(super) chaos_ms: Ms,
    /// After so many events nothing goes wrong any more, even before that: for shrinking.
    pub(super) chaos_events: u64,
    pub(super) batch_ms: Ms,
    pub(super) loss: u64,
    pub(super) duplicates: u64,
    /// Percent of messages that come much later.
    pub(super) late: u64,
    /// Per thousand steps.
    pub(super) crashes: u64,
    pub(super) partition_every_ms: Option<Ms>,
    pub(super) slow_disk: u64,
    pub(super) retires: bool,
    pub(super) range_bytes: usize,
    /// Entries between two certified states.
    pub(super) state_every: u64,
    /// Real engines instead of the oracle.
    pub(super) engines: Option<Engines>,
    pub(super) mutation: Option<Mutation>,
}

/// How real engines run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engines {
    /// The engines of members that lie run twice under one key.
    pub(super) twins: bool,
    /// Standard deviation of the delay of messages between engines.
    pub(super) jitter_ms: Ms,
}

impl Plan {
    /// The run of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x70_6c61_6e00);
        let members = if rng.percent(75) { 4 } else { 7 };
        let faults = (members - 1) / 3;
        let mut seats: Vec<usize> = (0..members).collect();
        rng.shuffle(&mut seats);
        let liars = if rng.percent(75) { rng.index(faults) + 1 } else { 0 };
        let rolled_back = (liars < faults && rng.percent(50)).then(|| seats[liars]);
        let calm = rng.percent(10);
        Self {
            seed,
            members,
            liars: seats[..liars].iter().copied().collect(),
            rolled_back,
            organisms: if rng.percent(65) { 1 } else { 2 },
            readers: 2,
            writers: if rng.percent(50) { 2 } else { 3 },
            writes: rng.range(2, 7),
            chaos_ms: rng.range(1_500, 5_000),
            chaos_events: u64::MAX,
            batch_ms: rng.range(100, 400),
            loss: if calm { 0 } else { rng.pick(&[0, 5, 15, 30]) },
            duplicates: if calm { 0 } else { rng.pick(&[0, 2, 10]) },
            late: if calm { 0 } else { rng.pick(&[0, 3, 10]) },
            crashes: if calm { 0 } else { rng.pick(&[0, 4, 12, 30]) },
            partition_every_ms: (!calm && rng.percent(65)).then(|| rng.range(300, 1_500)),
            slow_disk: rng.pick(&[0, 0, 10, 40]),
            retires: rng.percent(35),
            range_bytes: rng.pick(&[150, 400, 1 << 20]),
            state_every: rng.pick(&[4, 9, 25]),
            engines: None,
            mutation: None,
        }
    }

    /// The run of a seed with real engines.
    pub(super) fn with_engines(seed: u64) -> Self {
        let plan = Self::new(seed);
        let mut rng = Rng::new(seed ^ 0x65_6e67_696e_6500);
        let twins = !plan.liars.is_empty() && rng.percent(50);
        let jitter_ms = if plan.late > 0 { rng.range(20, 120) } else { 5 };
        Self { engines: Some(Engines { twins, jitter_ms }), ..plan }
    }

    /// The same run with a mistake planted.
    pub(super) fn planted(self, mutation: Mutation) -> Self {
        let mut plan = Self { mutation: Some(mutation), ..self };
        if mutation == Mutation::QuorumLies {
            plan.liars = (0..plan.quorum()).collect();
            plan.rolled_back = None;
        }
        plan
    }

    /// Members the committee survives the loss or lies of.
    pub(super) const fn faults(&self) -> usize {
        (self.members - 1) / 3
    }

    pub(super) const fn quorum(&self) -> usize {
        self.members - self.faults()
    }

    pub(super) fn is_honest(&self, member: usize) -> bool {
        member < self.members && !self.liars.contains(&member)
    }

    pub(super) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}
