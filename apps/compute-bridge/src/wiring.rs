//! Putting the parts together: from a boot file to a running bridge, in the order in which each step needs the one before.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coalition::{CommitteeContent, ModuleKind, ProviderId, PublishedConfig, RequestId, UniqueId};
use coalition_almanac::AlmanacParams;
use coalition_compute::{ComputeParams, OfferName};
use coalition_organism::Organism;
use coalition_shuffle::{CellId, CellScope, Envelope, PublicParams, ReplyCell, RotatingPeer};
use coalition_universe::{Node, NodeConfig, NodeKey, PeerId};
use coalition_unseal::{ShuffleClient, ShuffleError};
use ed25519_dalek::SigningKey;
use nix::fcntl::{Flock, FlockArg};

use crate::backends::build::backends;
use crate::channel::{OpenError, ReplySender, RequestOpener};
use crate::config::{BridgeConfig, ConfigError, OnShutdown, Resolved};
use crate::dashboard::{Dashboard, DashboardError};
use crate::evidence::{EvidenceError, EvidenceStore};
use crate::fleet::{Fleet, FleetError, chain};
use crate::image::{ImageError, ImageSource, ImageStore, NodeSource};
use crate::journal::{Journal, JournalError};
use crate::market::{LiveMarket, Market};
use crate::platform::PlatformError;
use crate::provider::{self, Parts, SourceMaker, Tuning};
use crate::status::Status;
use crate::wallet::Wallet;

/// Role under which a coalition references its unseal committee.
const UNSEAL_ROLE: &str = "unseal";
/// Services this version speaks, as configs name them.
const COMPUTE_SERVICE: &str = "compute.v1";
const ALMANAC_SERVICE: &str = "almanac.v1";
const UNSEAL_SERVICE: &str = "unseal.v1";
/// Wait for the relay at start.
const NODE_START: Duration = Duration::from_secs(30);
/// Wait for the certified log to be folded at start.
const CATCH_UP: Duration = Duration::from_secs(60);

/// Why a bridge does not run.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The boot file, or what it points to.
    #[error("the boot file cannot be used")]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error("the data directory {path} cannot be used")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another bridge runs there.
    #[error("another bridge is using {path}; stop it first, or give this one its own data_dir")]
    Busy {
        /// The data directory.
        path: PathBuf,
    },
    /// The coalition's config lacks something a bridge needs, or this version does not speak its service.
    #[error("the coalition {fingerprint} cannot be served: {problem}")]
    Coalition {
        /// Its fingerprint.
        fingerprint: UniqueId,
        /// What is missing.
        problem: String,
    },
    /// The node.
    #[error("the bridge's node does not start")]
    Node(#[from] coalition_universe::NodeError),
    /// The node closed by itself.
    #[error("the bridge's node has closed; start the bridge again, running grants are taken up where they stand")]
    NodeClosed,
    /// The market's log.
    #[error("the market's log cannot be read; are the committee's members up, and in `bootstrap`?")]
    Market(#[source] coalition_organism::ReadError),
    /// The platform quotes come from.
    #[error("the platform quotes come from cannot be used")]
    Platform(#[from] PlatformError),
    /// A cloud's API.
    #[error("the backend {name} cannot be made")]
    Cloud {
        /// The offer.
        name: OfferName,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The fleet.
    #[error("the fleet cannot be made")]
    Fleet(#[from] FleetError),
    /// The journal.
    #[error("the journal")]
    Journal(#[from] JournalError),
    /// What clouds counted.
    #[error("the evidence")]
    Evidence(#[from] EvidenceError),
    /// The image cache.
    #[error("the image cache")]
    Images(#[source] ImageError),
    /// The dashboard.
    #[error("the dashboard")]
    Dashboard(#[from] DashboardError),
}

/// What a coalition's config says about the three committees a bridge talks to.
pub(crate) struct Committees {
    compute: (UniqueId, CommitteeContent, ComputeParams),
    almanac: Option<(UniqueId, CommitteeContent, AlmanacParams)>,
    unseal: (CommitteeContent, PublicParams),
    scope: CellScope,
}

impl Committees {
    /// Reads and checks them.
    pub(crate) fn of(config: &PublishedConfig) -> Result<Self, BridgeError> {
        let bad = |problem: String| BridgeError::Coalition { fingerprint: config.fingerprint(), problem };
        let module = |kind: ModuleKind, service: &str| {
            let content = config.committee(kind).map_err(|error| bad(chain(&error)))?;
            let id = config.module(kind).map(|module| module.id);
            let id = id.ok_or_else(|| bad(format!("its {} module is not published", kind.str_name())))?;
            speaks(&content, service).map_err(bad)?;
            Ok::<_, BridgeError>((id, content))
        };
        let (compute, content) = module(ModuleKind::Compute, COMPUTE_SERVICE)?;
        let params = ComputeParams::from_bytes(&content.params).map_err(|error| bad(chain(&error)))?;
        let almanac = match config.module_ref(ModuleKind::Almanac) {
            None => None,
            Some(_) => {
                let (id, content) = module(ModuleKind::Almanac, ALMANAC_SERVICE)?;
                let params = AlmanacParams::from_bytes(&content.params).map_err(|error| bad(chain(&error)))?;
                Some((id, content, params))
            }
        };
        let unseal = config.organism_committee(UNSEAL_ROLE).map_err(|error| bad(chain(&error)))?;
        speaks(&unseal, UNSEAL_SERVICE).map_err(bad)?;
        let keys = PublicParams::from_bytes(&unseal.params).map_err(|error| bad(chain(&error)))?;
        let scope = CellScope { coalition: config.fingerprint(), compute };
        Ok(Self { compute: (compute, content, params), almanac, unseal: (unseal, keys), scope })
    }
}

fn speaks(content: &CommitteeContent, service: &str) -> Result<(), String> {
    if content.service == service {
        return Ok(());
    }
    Err(format!("a committee speaks {:?}, this version speaks {service:?}", content.service))
}

/// A bridge that is ready to serve.
pub struct Bridge {
    node: Arc<Node>,
    parts: Parts,
    dashboard: Option<Dashboard>,
    _lock: Flock<std::fs::File>,
}

impl Bridge {
    /// Boots in order: boot file and secrets, data directory and journal, coalition, node, certified log, unseal committee,
    /// fleet, dashboard. Nothing is sold before [`Bridge::serve`].
    ///
    /// # Errors
    /// [`BridgeError`] of the first step that fails.
    pub async fn start(config: BridgeConfig) -> Result<Self, BridgeError> {
        let resolved = config.resolve()?;
        let data_dir = resolved.config.absolute(resolved.config.data_dir.get_ref());
        let lock = lock_data_dir(&data_dir)?;
        let journal = Journal::open(&data_dir)?;
        let evidence = Arc::new(EvidenceStore::open(&data_dir)?);
        let committees = Committees::of(&resolved.coalition)?;
        let signer = SigningKey::from_bytes(resolved.key.expose());
        let id = ProviderId::from_public_key(&signer.verifying_key().to_bytes());
        let fleet = Fleet::new(backends(&resolved, id)?)?.ordered(resolved.config.provider.order);
        fleet.check_open(&journal.open_grants(), crate::now_ms())?;
        let provider = &resolved.config.provider;
        let mib = |value: u64| value.saturating_mul(1 << 20);
        let images = ImageStore::open(
            &data_dir.join("images"),
            mib(*provider.image_cache_mib.get_ref()),
            mib(*provider.max_image_mib.get_ref()),
        );
        let images = images.map_err(BridgeError::Images)?;

        let node = start_node(&resolved, resolved.key.clone(), resolved.config.listen, true).await?;
        let market = follow(&node, &committees, wallet(&resolved), CATCH_UP).await?;
        let unseal = unseal_client(&node, &committees);
        let status = Status::new(id);
        let dashboard = start_dashboard(&resolved, &status, &market, &journal, &fleet).await?;
        let parts = Parts {
            peer: *node.peer_id().as_bytes(),
            market,
            opener: Arc::clone(&unseal) as Arc<dyn RequestOpener>,
            replier: unseal,
            source: image_source(&node),
            images,
            fleet,
            journal,
            evidence,
            status,
            tuning: tuning(&resolved.config),
            attestor: resolved.attestor.clone(),
            signer,
        };
        say_posture(&parts);
        tracing::info!(provider = %id, coalition = %resolved.coalition.fingerprint(), "the bridge is ready");
        Ok(Self { node, parts, dashboard, _lock: lock })
    }

    /// This bridge's provider id.
    #[must_use]
    pub fn provider_id(&self) -> ProviderId {
        ProviderId::from_public_key(&self.parts.signer.verifying_key().to_bytes())
    }

    /// Where the dashboard listens, if there is one.
    #[must_use]
    pub fn dashboard_address(&self) -> Option<std::net::SocketAddr> {
        self.dashboard.as_ref().map(|dashboard| dashboard.address)
    }

    /// Sells until `shutdown` resolves; then drains or leaves grants running, as the boot file says.
    ///
    /// # Errors
    /// [`BridgeError::Journal`] when the disk fails, [`BridgeError::NodeClosed`] when the network does: the process should be
    /// started again then.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), BridgeError> {
        let Self { node, parts, dashboard, _lock } = self;
        let fleet = parts.fleet.clone();
        let served = tokio::select! {
            served = provider::serve(parts, shutdown) => served.map_err(BridgeError::Journal),
            () = node.closed() => Err(BridgeError::NodeClosed),
        };
        drop(dashboard);
        for backend in fleet.backends() {
            backend.close().await;
        }
        node.stop().await;
        served
    }
}

/// The whole daemon: [`Bridge::start`], then [`Bridge::serve`]. A shutdown during the start ends it at once.
///
/// # Errors
/// [`BridgeError`].
pub async fn run(config: BridgeConfig, shutdown: impl Future<Output = ()> + Send) -> Result<(), BridgeError> {
    tokio::pin!(shutdown);
    let bridge = tokio::select! {
        started = Box::pin(Bridge::start(config)) => started?,
        () = &mut shutdown => return Ok(()),
    };
    if let Some(address) = bridge.dashboard_address() {
        tracing::info!("the dashboard is at http://{address}/");
    }
    Box::pin(bridge.serve(shutdown)).await
}

/// Tells the operator what the bridge can prove, and what the market asks, before anything is refused.
fn say_posture(parts: &Parts) {
    let asked = parts.market.attestation_rule();
    match (&parts.attestor, &asked) {
        (Some(attestor), Some(rule)) => {
            tracing::info!(platform = ?attestor.platform, root = rule.policy.root().label(), "the market verifies attestation");
        }
        (Some(attestor), None) => {
            tracing::warn!(platform = ?attestor.platform, "this market verifies no attestation; the bridge counts as a plain host");
        }
        (None, Some(rule)) if rule.required => {
            tracing::warn!(
                root = rule.policy.root().label(),
                "this market admits only attested providers, and the boot file has no [attestation]"
            );
        }
        (None, _) => tracing::info!("not attested: a plain host"),
    }
}

fn lock_data_dir(dir: &Path) -> Result<Flock<std::fs::File>, BridgeError> {
    let failed = |source| BridgeError::DataDir { path: dir.into(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(BridgeError::Busy { path: dir.into() }),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn tuning(config: &BridgeConfig) -> Tuning {
    let provider = &config.provider;
    let seconds = |value: &toml::Spanned<u64>| Duration::from_secs(*value.get_ref());
    Tuning {
        blind_after_deadline: Duration::from_secs(30),
        capacity_refresh: seconds(&provider.capacity_refresh_sec),
        max_concurrent_grants: *provider.max_concurrent_grants.get_ref() as usize,
        open_timeout: seconds(&provider.open_timeout_sec),
        image_timeout: seconds(&provider.image_timeout_sec),
        reply_timeout: Duration::from_secs(300),
        orphan_grace: seconds(&provider.orphan_grace_sec),
        inventory_interval: seconds(&provider.inventory_interval_sec),
        default_disk_mib: *provider.default_disk_mib.get_ref(),
        max_disk_mib: *provider.max_disk_mib.get_ref(),
        drain: provider.on_shutdown == OnShutdown::Drain,
    }
}

/// A node of the boot file's network, under this identity.
pub(crate) async fn start_node(
    resolved: &Resolved,
    key: NodeKey,
    bind: Option<std::net::SocketAddr>,
    public: bool,
) -> Result<Arc<Node>, BridgeError> {
    let config = NodeConfig {
        network_id: resolved.config.network()?,
        key,
        relay: resolved.config.relay.get_ref().clone(),
        bind,
        bootstrap: resolved.bootstrap.clone(),
        public,
        start_timeout: NODE_START,
    };
    Ok(Node::start(config).await?)
}

/// What the bridge shows where it is asked for tickets.
fn wallet(resolved: &Resolved) -> Wallet {
    let files = resolved.config.tickets.iter().map(|file| resolved.config.absolute(file.get_ref()));
    Wallet { files: files.collect(), platform: resolved.attestor.as_ref().map(|attestor| attestor.platform.clone()) }
}

/// The coalition's market, folded up to now.
pub(crate) async fn follow(
    node: &Arc<Node>,
    committees: &Committees,
    wallet: Wallet,
    patience: Duration,
) -> Result<Arc<LiveMarket>, BridgeError> {
    let connect = |id: UniqueId, content: &CommitteeContent| {
        Organism::connect(Arc::clone(node), id, content.roster.clone())
            .map_err(|error| BridgeError::Coalition { fingerprint: committees.scope.coalition, problem: chain(&error) })
    };
    let (id, content, params) = &committees.compute;
    let compute = connect(*id, content)?;
    let compute = if wallet.is_empty() { compute } else { compute.showing(Arc::new(wallet)) };
    let clock = match &committees.almanac {
        Some((id, content, params)) => Some((connect(*id, content)?, *params)),
        None => None,
    };
    let market = LiveMarket::follow(compute, params.clone(), clock);
    market.caught_up(patience).await.map_err(BridgeError::Market)?;
    Ok(market)
}

fn unseal_client(node: &Arc<Node>, committees: &Committees) -> Arc<Unseal> {
    let (content, params) = &committees.unseal;
    let members =
        content.roster.members().iter().filter_map(|member| PeerId::from_bytes(member.peer_id).ok()).collect();
    Arc::new(Unseal(ShuffleClient::new(Arc::clone(node), params.clone(), committees.scope, members)))
}

fn image_source(node: &Arc<Node>) -> Arc<SourceMaker> {
    let node = Arc::clone(node);
    Arc::new(move |address| Box::new(NodeSource::new(Arc::clone(&node), address)) as Box<dyn ImageSource>)
}

async fn start_dashboard(
    resolved: &Resolved,
    status: &Arc<Status>,
    market: &Arc<LiveMarket>,
    journal: &Journal,
    fleet: &Fleet,
) -> Result<Option<Dashboard>, BridgeError> {
    let (Some(dashboard), Some(token)) = (&resolved.config.dashboard, &resolved.dashboard_token) else {
        return Ok(None);
    };
    let (status, market, journal, fleet) = (Arc::clone(status), Arc::clone(market), journal.clone(), fleet.clone());
    let snapshot = move || status.snapshot(market.as_ref() as &dyn Market, &journal, &fleet);
    Ok(Some(Dashboard::start(dashboard.port, token.clone(), Box::new(snapshot)).await?))
}

/// The unseal committee's client, with errors that name nobody but its members.
struct Unseal(ShuffleClient);

#[async_trait]
impl RequestOpener for Unseal {
    fn scope(&self) -> CellScope {
        self.0.scope()
    }

    async fn open(&self, request: RequestId, cell: CellId, deadline: Duration) -> Result<Envelope, OpenError> {
        self.0.open_cell(request, cell, deadline).await.map_err(|error| match error {
            ShuffleError::Cell(broken) => OpenError::Broken(broken.to_string()),
            other => OpenError::Unavailable(nameless(&other)),
        })
    }
}

#[async_trait]
impl ReplySender for Unseal {
    async fn send(
        &self,
        to: RotatingPeer,
        request: RequestId,
        reply: &ReplyCell,
        deadline: Duration,
    ) -> Result<(), String> {
        self.0.post_reply(to, request, reply, deadline).await.map(|_| ()).map_err(|error| nameless(&error))
    }
}

/// How many members helped, without what they said: a member's words may name the peer it was asked about.
fn nameless(error: &ShuffleError) -> String {
    match error {
        ShuffleError::TooFew { done, need, waited_ms, .. } => {
            format!("{done} of {need} members needed helped within {waited_ms} ms")
        }
        ShuffleError::Cell(_) => "the cell is broken".into(),
        ShuffleError::NoReceipt { .. } => "no reply".into(),
        ShuffleError::Wire(_) => "the message could not be made".into(),
    }
}
