//! The pure machine of one grant: `Seen → Opening → Provisioning → Running → Replied → Stopping → LogPending → Closed`,
//! with refusals on the way, and `Replied → Extending → Replied` as often as the requester has the grant made longer.
//!
//! Every event that precedes an action is written before it: finding [`Stage::Provisioning`] after a crash means that an
//! instance of that name may or may not exist. [`GrantState::next`] is what the driver does next, after a crash as well as
//! in the ordinary course: there is no second code path for recovery.

use coalition::AlmanacTick;
use coalition_compute::{ComputeGrant, DeclineReason, LogEnd, OfferName, RefusalReason, UsageMetrics};
use serde::{Deserialize, Serialize};

use crate::backend::{FailureKind, InstanceName, ProvisionedInstance};
use crate::market::Extension;

/// Tries that a crash may interrupt before the grant is given up.
const MAX_INTERRUPTIONS: usize = 3;

/// One try at provisioning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The backend.
    pub backend: OfferName,
    /// The instance's name there.
    pub instance: InstanceName,
    /// How it failed: `None` while it is under way or when it runs.
    pub failed: Option<AttemptFailure>,
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptFailure {
    /// The backend said so.
    Backend {
        /// What kind.
        kind: FailureKind,
        /// Whether the workload had been started.
        started: bool,
    },
    /// The bridge stopped in the middle; what there was has been removed.
    Interrupted,
}

/// What happened, or, for intents, is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The market granted this.
    Granted(Box<ComputeGrant>),
    /// Intent: the unseal committee is about to be asked for the envelope.
    Opening,
    /// Intent: this backend is about to create this instance.
    Provisioning {
        /// The backend.
        backend: OfferName,
        /// The name derived for it.
        instance: InstanceName,
    },
    /// The try failed and nothing of it is left, or what is left is remembered for the sweep.
    AttemptFailed(AttemptFailure),
    /// The instance runs. The receipt is already sealed to the requester; nobody here can open it.
    Running {
        /// The instance.
        instance: Box<ProvisionedInstance>,
        /// The sealed receipt.
        sealed_receipt: Vec<u8>,
    },
    /// The receipt was posted.
    Replied,
    /// Intent: the instance is about to be stopped, or is over. Said again as lost when its machine does not answer.
    Stopping(LogEnd),
    /// The instance does not run any more and this was its usage; it is about to be removed.
    Metered(UsageMetrics),
    /// The instance is gone, confirmed; the final log is due.
    Stopped {
        /// Final usage.
        usage: UsageMetrics,
        /// End of the log's window.
        to: AlmanacTick,
    },
    /// Intent: the grant is about to be given back.
    Refusing(RefusalReason),
    /// Over.
    Closed(Outcome),
    /// The whole state, written when the file is compacted.
    Snapshot(Box<GrantState>),
    /// Intent: everything that ends the instance is about to be moved to the end this extension asks for.
    Extending(Extension),
    /// All of it is moved; the market is about to be told.
    ExtensionMoved,
    /// It is not made longer; what was moved is about to be moved back, and the market told why, if it is to be told.
    ExtensionGivenUp(Option<DeclineReason>),
    /// The market has the grant longer.
    Extended,
    /// The grant ends when it would have.
    ExtensionOver,
}

/// How a grant ended for this bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The final log is certified.
    Logged(LogEnd),
    /// The refusal is certified.
    Refused(RefusalReason),
    /// The market had ended the grant by itself and takes nothing more about it.
    Lapsed,
}

/// Where a grant stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Seen in the log.
    Seen,
    /// Envelope, image and backend are being seen to; nothing exists on any backend.
    Opening,
    /// A backend was told to create this, or was about to be.
    Provisioning {
        /// The backend.
        backend: OfferName,
        /// The instance.
        instance: InstanceName,
    },
    /// It runs; the requester has not been told yet.
    Running {
        /// The instance.
        instance: Box<ProvisionedInstance>,
        /// The sealed receipt to post.
        sealed_receipt: Vec<u8>,
    },
    /// It runs and the requester has been told.
    Replied {
        /// The instance.
        instance: Box<ProvisionedInstance>,
    },
    /// It is being stopped.
    Stopping {
        /// The instance; none when nothing was ever started.
        instance: Option<(OfferName, InstanceName)>,
        /// Why.
        end: LogEnd,
        /// Its usage, once it has stopped running.
        usage: Option<UsageMetrics>,
    },
    /// It is gone; the final log is due.
    LogPending {
        /// Why it ended.
        end: LogEnd,
        /// Final usage.
        usage: UsageMetrics,
        /// End of the log's window.
        to: AlmanacTick,
    },
    /// The refusal is due.
    RefusalPending(RefusalReason),
    /// Over.
    Closed(Outcome),
    /// It runs, and is being made longer.
    Extending {
        /// The instance.
        instance: Box<ProvisionedInstance>,
        /// What was asked.
        extension: Extension,
        /// How far that is.
        step: ExtensionStep,
    },
}

/// How far an extension is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtensionStep {
    /// Ends are being moved; some may be.
    Moving,
    /// All are moved; the market may know it or not.
    Moved,
    /// They are being moved back, and the market is told why, if it is to be told.
    Restoring(Option<DeclineReason>),
}

impl Stage {
    /// Stable name, for the dashboard and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Opening => "opening",
            Self::Provisioning { .. } => "provisioning",
            Self::Running { .. } => "running",
            Self::Replied { .. } => "replied",
            Self::Stopping { .. } => "stopping",
            Self::LogPending { .. } => "log_pending",
            Self::RefusalPending(_) => "refusal_pending",
            Self::Closed(_) => "closed",
            Self::Extending { .. } => "extending",
        }
    }

    /// All names.
    pub const NAMES: [&'static str; 10] = [
        "seen",
        "opening",
        "provisioning",
        "running",
        "replied",
        "extending",
        "stopping",
        "log_pending",
        "refusal_pending",
        "closed",
    ];
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Obtain the envelope and the image, and have the fleet provision.
    Provision,
    /// A try was under way when the bridge stopped: remove whatever it left, then go on.
    Undo {
        /// The backend.
        backend: OfferName,
        /// The instance.
        instance: InstanceName,
    },
    /// Post the sealed receipt.
    Reply,
    /// State that it is served, and watch it.
    Watch,
    /// Take the extension one step further.
    Extend,
    /// Stop the instance and confirm it is gone.
    Terminate,
    /// Write the final log.
    WriteLog,
    /// Write the refusal.
    WriteRefusal,
    /// Nothing.
    Nothing,
}

/// Everything remembered about one grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantState {
    /// The grant, as public in the log.
    pub grant: ComputeGrant,
    /// Where it stands.
    pub stage: Stage,
    /// Every try at provisioning.
    pub attempts: Vec<AttemptRecord>,
}

/// A record that cannot follow what came before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// About a grant never seen.
    #[error("it is about a grant that no earlier record introduced")]
    Unknown,
    /// Out of order.
    #[error("a grant that is {stage} cannot become {event}")]
    Order {
        /// Where it stood.
        stage: &'static str,
        /// What was to happen.
        event: &'static str,
    },
}

impl Event {
    const fn name(&self) -> &'static str {
        match self {
            Self::Granted(_) => "granted",
            Self::Opening => "opening",
            Self::Provisioning { .. } => "provisioning",
            Self::AttemptFailed(_) => "attempt failed",
            Self::Running { .. } => "running",
            Self::Replied => "replied",
            Self::Stopping(_) => "stopping",
            Self::Metered(_) => "metered",
            Self::Stopped { .. } => "stopped",
            Self::Refusing(_) => "refusing",
            Self::Closed(_) => "closed",
            Self::Snapshot(_) => "a snapshot",
            Self::Extending(_) => "extending",
            Self::ExtensionMoved => "extension moved",
            Self::ExtensionGivenUp(_) => "extension given up",
            Self::Extended => "extended",
            Self::ExtensionOver => "extension over",
        }
    }
}

impl GrantState {
    /// A grant just seen.
    #[must_use]
    pub const fn new(grant: ComputeGrant) -> Self {
        Self { grant, stage: Stage::Seen, attempts: Vec::new() }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed(_))
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self) -> Next {
        match &self.stage {
            Stage::Seen | Stage::Opening => Next::Provision,
            Stage::Provisioning { backend, instance } => {
                Next::Undo { backend: backend.clone(), instance: instance.clone() }
            }
            Stage::Running { .. } => Next::Reply,
            Stage::Replied { .. } => Next::Watch,
            Stage::Extending { .. } => Next::Extend,
            Stage::Stopping { .. } => Next::Terminate,
            Stage::LogPending { .. } => Next::WriteLog,
            Stage::RefusalPending(_) => Next::WriteRefusal,
            Stage::Closed(_) => Next::Nothing,
        }
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Illegal`] when the event cannot happen here; nothing changes.
    pub fn apply(&self, event: &Event) -> Result<Self, Illegal> {
        let mut next = self.clone();
        next.stage = self.stage_after(event, &mut next.attempts)?;
        if let (Stage::Extending { extension, .. }, Event::Extended) = (&self.stage, event) {
            next.grant.duration_sec = next.grant.duration_sec.saturating_add(extension.extra_sec);
            (next.grant.valid_to, next.grant.valid_to_ms) = (extension.valid_to, extension.valid_to_ms);
        }
        Ok(next)
    }

    fn stage_after(&self, event: &Event, attempts: &mut Vec<AttemptRecord>) -> Result<Stage, Illegal> {
        Ok(match (&self.stage, event) {
            (Stage::Seen | Stage::Opening, Event::Opening) => Stage::Opening,
            (Stage::Opening, Event::Provisioning { backend, instance }) => {
                attempts.push(AttemptRecord { backend: backend.clone(), instance: instance.clone(), failed: None });
                Stage::Provisioning { backend: backend.clone(), instance: instance.clone() }
            }
            (Stage::Provisioning { .. }, Event::AttemptFailed(failure)) => {
                if let Some(last) = attempts.last_mut() {
                    last.failed = Some(*failure);
                }
                Stage::Opening
            }
            (Stage::Provisioning { .. }, Event::Running { instance, sealed_receipt }) => {
                Stage::Running { instance: instance.clone(), sealed_receipt: sealed_receipt.clone() }
            }
            (Stage::Running { instance, .. }, Event::Replied) => Stage::Replied { instance: instance.clone() },
            (Stage::Seen | Stage::Opening, Event::Stopping(end)) => {
                Stage::Stopping { instance: None, end: *end, usage: None }
            }
            (Stage::Provisioning { backend, instance }, Event::Stopping(end)) => {
                Stage::Stopping { instance: Some((backend.clone(), instance.clone())), end: *end, usage: None }
            }
            (
                Stage::Running { instance, .. } | Stage::Replied { instance } | Stage::Extending { instance, .. },
                Event::Stopping(end),
            ) => {
                let instance = Some((instance.backend.clone(), instance.name.clone()));
                Stage::Stopping { instance, end: *end, usage: None }
            }
            (Stage::Replied { instance }, Event::Extending(extension)) => {
                let (instance, extension) = (instance.clone(), *extension);
                Stage::Extending { instance, extension, step: ExtensionStep::Moving }
            }
            (Stage::Extending { instance, extension, step }, event) => {
                let step = match (step, event) {
                    (_, Event::Extended) | (ExtensionStep::Restoring(_), Event::ExtensionOver) => {
                        return Ok(Stage::Replied { instance: instance.clone() });
                    }
                    (ExtensionStep::Moving, Event::ExtensionMoved) => ExtensionStep::Moved,
                    (ExtensionStep::Moving | ExtensionStep::Moved, Event::ExtensionGivenUp(reason)) => {
                        ExtensionStep::Restoring(*reason)
                    }
                    _ => return Err(Illegal::Order { stage: self.stage.name(), event: event.name() }),
                };
                Stage::Extending { instance: instance.clone(), extension: *extension, step }
            }
            // The machine it was to be stopped on is lost.
            (Stage::Stopping { instance, usage, .. }, Event::Stopping(LogEnd::BackendLost)) => {
                Stage::Stopping { instance: instance.clone(), end: LogEnd::BackendLost, usage: *usage }
            }
            (Stage::Stopping { instance, end, .. }, Event::Metered(usage)) => {
                Stage::Stopping { instance: instance.clone(), end: *end, usage: Some(*usage) }
            }
            (Stage::Stopping { end, .. }, Event::Stopped { usage, to }) => {
                Stage::LogPending { end: *end, usage: *usage, to: *to }
            }
            (Stage::Seen | Stage::Opening, Event::Refusing(reason)) => Stage::RefusalPending(*reason),
            (Stage::LogPending { .. } | Stage::RefusalPending(_), Event::Closed(outcome)) => Stage::Closed(*outcome),
            (stage, event) => return Err(Illegal::Order { stage: stage.name(), event: event.name() }),
        })
    }

    /// The instance that may exist on a backend now.
    #[must_use]
    pub fn instance(&self) -> Option<(&OfferName, &InstanceName)> {
        match &self.stage {
            Stage::Provisioning { backend, instance } => Some((backend, instance)),
            Stage::Running { instance, .. } | Stage::Replied { instance } | Stage::Extending { instance, .. } => {
                Some((&instance.backend, &instance.name))
            }
            Stage::Stopping { instance, .. } => instance.as_ref().map(|(backend, name)| (backend, name)),
            Stage::Seen | Stage::Opening | Stage::LogPending { .. } | Stage::RefusalPending(_) | Stage::Closed(_) => {
                None
            }
        }
    }

    /// Number of the next try, from 0; part of the next instance's name.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX)
    }

    /// Whether the bridge was interrupted so often in the middle of provisioning that it should give the grant back.
    #[must_use]
    pub fn is_worn_out(&self) -> bool {
        let interrupted = |attempt: &&AttemptRecord| attempt.failed == Some(AttemptFailure::Interrupted);
        self.attempts.iter().filter(interrupted).count() >= MAX_INTERRUPTIONS
    }
}
