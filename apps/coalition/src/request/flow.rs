//! The request as it happens.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::{MemberId, RequestId, ZERO_ID};
use coalition_attest::{Directory, Evidence, Verdict};
use coalition_compute::{
    At, Command, ComputeGrant, ComputeRequest, EndGrant, MarketView, Signed, Statement, WithdrawRequest,
    anonymous_requester, request_id,
};
use coalition_log::retirement::Retirement;
use coalition_organism::{Committed, Follower, Organism, WriteError, random_write_id};
use coalition_shuffle::{PendingRequest, Posture, SshAccessReceipt, WorkloadSpec};
use coalition_universe::{NodeKey, PeerAddress, PeerId};
use ed25519_dalek::SigningKey;
use rand_core::{OsRng, RngCore};
use serde_json::{Value, json};

use super::{
    plan::{self, Ask, Checked, Snapshot, dollars},
    serve::{ImageService, Served},
    standing::{Over, is_over, look},
    wanted::{ImageChoice, Wanted},
};
use crate::{
    attestation::{self, NOT_ATTESTED, Vouched, Workload, labelled},
    commands::request::posture_line,
    error::{CliError, Context, Kind, Result},
    grants::{Cleared, Grant, GrantFile, Stage, short},
    home::Home,
    output::Steps,
    session::{Session, where_next},
    signals::StopSignals,
    values,
};

/// How long the unseal committee may take to accept a cell, and the Compute committee to certify a write.
pub(crate) const WRITE_WAIT: Duration = Duration::from_secs(40);
/// Added to a request's deadline before this process gives up waiting for the committee to say how it ended.
const CLEARING_GRACE: Duration = Duration::from_secs(20);

/// Before a follower of the market that has stopped is asked again.
const FOLLOWER_PAUSE: Duration = Duration::from_millis(200);

/// Everything a request needs.
#[derive(Debug, Clone)]
pub struct Request {
    /// Size, place, price, time.
    pub ask: Ask,
    /// The image.
    pub image: ImageChoice,
    /// Stores to look for it, beside those it was pushed to.
    pub stores: Vec<PeerAddress>,
    /// Whether to end once it is granted; the image must be in a store then.
    pub detach: bool,
    /// Disk in MiB with the unpacked image on it; made to fit the image when none is asked for.
    pub disk_mib: Option<u32>,
    /// What to run inside; empty for nothing.
    pub workload: Vec<String>,
    /// How long the provider may take from grant to receipt.
    pub provision_wait: Duration,
    /// The requester's own identity, if it chooses to show it.
    pub shown_as: Option<MemberId>,
}

/// Requests a machine and waits until one can log in.
///
/// # Errors
/// Input that cannot be sent, refusals, expiry, a provider that does not deliver, an interrupt. Unless the message says what
/// remains, nothing does.
pub async fn run(home: &Home, request: &Request, steps: &mut Steps) -> Result<Grant> {
    let wanted = Wanted::find(home, &request.image, &request.stores, steps).await?;
    if request.detach {
        wanted.check_detached()?;
    }
    wanted.check_command(&request.workload)?;
    let disk_mib = wanted.disk_mib(request.disk_mib, steps)?;
    home.ensure()?;
    steps.begin("joining the coalition");
    let session = Session::open(home).await?;
    let market = session.market(steps.output()).await?;
    if let Some((retirement, true)) = market.retirement() {
        return Err(retired(&retirement));
    }
    let now = session.now().await?;
    let cards: Vec<_> = market.read(|view| view.cards(now).collect());
    let snapshot = Snapshot { cards: &cards, params: &session.compute.params, now };
    let checked = plan::check(&request.ask, &snapshot, now_ms())?;
    if let Some(note) = &checked.note {
        steps.pause();
        steps.output().warn(note);
    }
    let mut stop = StopSignals::listen()?;
    let asked = Asked { session: &session, market: &market, request, wanted: &wanted, checked: &checked };
    let mut attempt = Attempt::prepare(asked, disk_mib)?;
    let outcome = tokio::select! {
        outcome = attempt.go(home, steps) => outcome,
        () = stop.received() => Err(CliError::new(Kind::Interrupted, "interrupted", "interrupted")),
    };
    let outcome = match outcome {
        Ok(grant) => Ok(grant),
        Err(error) => {
            steps.pause();
            Err(attempt.release(error).await)
        }
    };
    drop(attempt);
    drop(market);
    session.close().await;
    outcome
}

/// One request on its way.
pub(super) struct Attempt<'a> {
    request: &'a Request,
    checked: &'a Checked,
    wanted: &'a Wanted,
    session: &'a Session,
    market: &'a Follower<MarketView>,
    organism: Organism,
    image: Arc<ImageService>,
    key: NodeKey,
    nonce: [u8; 16],
    id: RequestId,
    pending: PendingRequest,
    /// Present from the moment the request may be in the market.
    grant: Option<Grant>,
    /// The newest grant seen.
    cleared: Option<ComputeGrant>,
}

/// What is asked for, and of whom.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub session: &'a Session,
    pub market: &'a Follower<MarketView>,
    pub request: &'a Request,
    pub wanted: &'a Wanted,
    pub checked: &'a Checked,
}

impl<'a> Attempt<'a> {
    fn new(
        asked: Asked<'a>,
        image: Arc<ImageService>,
        (key, nonce, id): (NodeKey, [u8; 16], RequestId),
        pending: PendingRequest,
    ) -> Self {
        let Asked { session, market, request, wanted, checked } = asked;
        let organism = market.organism().clone();
        let (grant, cleared) = (None, None);
        Self { request, checked, wanted, session, market, organism, image, key, nonce, id, pending, grant, cleared }
    }

    /// Makes the request's keys, seals the envelope and starts serving the image. Nothing is sent.
    fn prepare(asked: Asked<'a>, disk_mib: u32) -> Result<Self> {
        let Asked { session, request, wanted, .. } = asked;
        let image = Arc::new(match &wanted.facts {
            Some(facts) => ImageService::open(&facts.path, &facts.outline)
                .or_input("image_unreadable", || format!("cannot read image {}", facts.path.display()))?,
            None => ImageService::without_image(),
        });
        let own = (!request.detach).then(|| session.node.address());
        session.node.serve(Arc::new(Served(Arc::clone(&image))));
        let key = NodeKey::generate();
        let mut nonce = [0; 16];
        OsRng.fill_bytes(&mut nonce);
        let id = request_id(&session.compute.id, key.peer_id().as_bytes(), &nonce);
        let workload = WorkloadSpec {
            image_hash: wanted.hash,
            image_size_bytes: wanted.size_bytes,
            requested_region: request.ask.region.as_ref().map(ToString::to_string),
            image_pointer: wanted.pointer(own)?.to_bytes(),
            cpu_millicores: request.ask.cpu_millicores,
            ram_mib: request.ask.ram_mib,
            disk_mib,
            command: request.workload.clone(),
            env: Vec::new(),
            ssh_authorized_key: None,
        };
        let shuffle = session.shuffle()?;
        let sealing = PendingRequest::build(
            &workload,
            session.rotating_peer(),
            shuffle.params(),
            shuffle.scope(),
            id,
            &mut OsRng,
        );
        let pending = sealing.or_input("request_invalid", || "the request cannot be sealed".into())?;
        Ok(Self::new(asked, image, (key, nonce, id), pending))
    }

    async fn go(&mut self, home: &Home, steps: &mut Steps) -> Result<Grant> {
        self.seal(steps).await?;
        self.order(home, steps).await?;
        let first = self.wait_cleared(0, steps).await?;
        if self.request.detach {
            return self.grant.take().ok_or_else(|| CliError::fault("internal", "the grant was not kept"));
        }
        self.receive(home, first, steps).await
    }

    /// From a grant to a machine one can log in to.
    async fn receive(&mut self, home: &Home, first: ComputeGrant, steps: &mut Steps) -> Result<Grant> {
        let receipt = self.wait_receipt(first, steps).await?;
        let (vouched, evidence) = self.vouch(home, &receipt)?;
        let mut grant = self.grant.take().ok_or_else(|| CliError::fault("internal", "the grant was not kept"))?;
        if let Err(error) = grant.keep_receipt(&receipt, vouched.posture, evidence.as_deref()) {
            self.grant = Some(grant);
            return Err(error);
        }
        announce_receipt(&grant, vouched.verdict.as_ref(), steps);
        Ok(grant)
    }

    /// Goes on with a request that another process ordered. Nothing is sent.
    pub(super) fn resume(asked: Asked<'a>, (grant, pending): (Grant, PendingRequest)) -> Result<Self> {
        let (key, id) = (grant.request_key()?, grant.file.grant);
        let image = Arc::new(ImageService::without_image());
        asked.session.node.serve(Arc::new(Served(Arc::clone(&image))));
        Ok(Self { grant: Some(grant), ..Self::new(asked, image, (key, [0; 16], id), pending) })
    }

    /// Waits for the grant and its receipt.
    pub(super) async fn go_on(&mut self, home: &Home, steps: &mut Steps) -> Result<Grant> {
        let first = self.wait_cleared(0, steps).await?;
        self.receive(home, first, steps).await
    }

    /// Gives the sealed envelope to the unseal committee.
    async fn seal(&self, steps: &mut Steps) -> Result<()> {
        steps.begin("sealing the request");
        let shuffle = self.session.shuffle()?;
        let submitted = shuffle.submit_cell(self.pending.cell(), WRITE_WAIT).await.map_err(|error| {
            CliError::new(Kind::Unreachable, "unseal_unreachable", "the unseal committee does not accept the request")
                .because(error)
                .hint("`coalition status` shows who is missing")
        })?;
        let text = format!(
            "to {} of {} unseal members, any {} open it for the provider alone",
            submitted.accepted,
            submitted.of,
            shuffle.params().t()
        );
        let fields = json!({ "request": self.id, "cell": self.pending.cell_id().to_string(), "members_holding": submitted.accepted, "members": submitted.of });
        steps.done("sealed", &text, fields);
        Ok(())
    }

    /// Writes the request down here, then into the market's log.
    async fn order(&mut self, home: &Home, steps: &mut Steps) -> Result<()> {
        steps.begin("ordering the request");
        let file = GrantFile {
            version: 1,
            grant: self.id,
            coalition: self.session.config.fingerprint().to_string(),
            requested_ms: now_ms(),
            stage: Stage::Requested,
            image: self.wanted.hash.to_string(),
            cpu_millicores: self.request.ask.cpu_millicores,
            ram_mib: self.request.ask.ram_mib,
            duration_s: self.checked.duration_s,
            cleared: None,
            access: None,
            workload_exit: None,
        };
        let signed = self.sign(self.statement())?;
        let grant = Grant::create(home, file, &self.key)?;
        grant.keep_pending(&self.pending, &self.session.key)?;
        self.grant = Some(grant);
        let committed = self.write(Command::SubmitRequest(signed)).await?;
        let pointer = committed.entries.first().map(ToString::to_string);
        let text = format!(
            "request {} is entry {} of the market's log",
            short(&self.id),
            committed.entries.first().map_or(0, |entry| entry.index)
        );
        steps.done("ordered", &text, json!({ "request": self.id, "pointer": pointer }));
        Ok(())
    }

    fn statement(&self) -> ComputeRequest {
        let ask = &self.request.ask;
        let key = self.key.peer_id();
        ComputeRequest {
            request_id: self.id,
            nonce: self.nonce,
            requester: self.request.shown_as.unwrap_or_else(|| anonymous_requester(key.as_bytes())),
            // An image that names no organism stands for itself.
            workload: self.wanted.hash,
            pin: Some(self.wanted.hash),
            image_hash: self.wanted.hash,
            cpu_millicores: ask.cpu_millicores,
            ram_mib: ask.ram_mib,
            duration_sec: self.checked.duration_s,
            region: ask.region.clone(),
            tdx_required: ask.tdx,
            pinned_mrtd: ask.mrtd,
            max_rate: ask.max_rate,
            settlement: ZERO_ID,
            deadline: self.checked.deadline,
            bearer_pointer: self.pending.cell_id().0,
        }
    }

    /// Waits for a grant after attempt `after`.
    async fn wait_cleared(&mut self, after: u8, steps: &mut Steps) -> Result<ComputeGrant> {
        steps.begin("waiting for the committee to clear it");
        let id = self.id;
        let patience = Duration::from_millis(self.checked.wait_ms) + CLEARING_GRACE;
        let cleared = self.market.wait_for(patience, move |view| look(view, id, after)).await.map_err(|error| {
            CliError::new(Kind::TimedOut, "no_clearing", "the committee did not say how the request ended")
                .because(error)
        })?;
        let (grant, pointer) = cleared?;
        if let Ok(provider) = PeerId::from_bytes(grant.endpoint_hint.provider_peer) {
            self.image.expect_evidence_of(provider);
        }
        self.cleared = Some(grant.clone());
        if let Some(kept) = &mut self.grant {
            let cleared = Cleared {
                provider: grant.provider.to_string(),
                offer: grant.offer.to_string(),
                region: grant.region.to_string(),
                rate: grant.rate,
                valid_to_ms: grant.valid_to_ms,
                tdx_required: grant.tdx_required,
                expected_mrtd: grant.expected_mrtd,
            };
            kept.update(|file| (file.stage, file.cleared) = (Stage::Granted, Some(cleared)))?;
        }
        let provider = &grant.provider.to_string()[..8];
        let found = self.market.read(|view| view.card(&grant.provider, view_time(&grant))?.attestation);
        let posture = found.as_ref().map_or(NOT_ATTESTED, |found| found.root.label());
        let text = format!(
            "to provider {provider} ({}, {}) at {} per core-hour, until {}; provider: {}",
            grant.offer,
            grant.region,
            dollars(grant.rate),
            values::utc(grant.valid_to_ms),
            labelled(posture, |paint, text| steps.output().paint_err(paint, text)),
        );
        let fields = json!({
            "grant": id, "provider": grant.provider, "offer": grant.offer, "region": grant.region, "attempt": grant.attempt,
            "rate_usd_core_hour": dollars(grant.rate).trim_start_matches('$'), "valid_to_ms": grant.valid_to_ms, "pointer": pointer,
            "posture": posture, "attestation": found, "tdx_required": grant.tdx_required, "expected_mrtd": grant.expected_mrtd,
        });
        steps.done("cleared", &text, fields);
        Ok(grant)
    }

    /// Serves the image until the receipt is here, the grant ends, or the provider takes too long.
    async fn wait_receipt(&mut self, mut grant: ComputeGrant, steps: &mut Steps) -> Result<SshAccessReceipt> {
        let shuffle = self.session.shuffle()?;
        let pending = self.pending.clone();
        let mut receipt = pin!(shuffle.fetch_receipt(&pending, self.request.provision_wait));
        let (mut progress, size) = (self.image.progress(), self.wanted.size_bytes);
        let mut fetched = false;
        steps.begin("the provider fetches the image");
        loop {
            let (id, attempt) = (self.id, grant.attempt);
            tokio::select! {
                biased;
                opened = &mut receipt => {
                    let opened = opened.map_err(|error| no_receipt(self.request.provision_wait, error))?;
                    if !fetched {
                        announce_image(self.wanted, *self.image.progress().borrow() >= size, steps);
                    }
                    return Ok(opened);
                }
                _ = progress.wait_for(|served| *served >= size), if !fetched => {
                    fetched = true;
                    announce_image(self.wanted, true, steps);
                    steps.begin("the provider boots it");
                }
                over = self.market.wait_for(self.request.provision_wait + CLEARING_GRACE, move |view| is_over(view, id, attempt)) => {
                    match over {
                        Ok(Over::Regranted(refusal)) => {
                            steps.pause();
                            steps.output().warn(format!("provider {} gave the grant back ({refusal})", &grant.provider.to_string()[..8]));
                            grant = self.wait_cleared(attempt, steps).await?;
                            fetched = false;
                        }
                        Ok(Over::Ended(how)) => {
                            self.cleared = None;
                            let message = format!("the grant ended before its receipt came: {how}");
                            return Err(CliError::new(Kind::Refused, "grant_ended", message)
                                .hint("the bridge's log says why; on this machine: `coalition status`"));
                        }
                        // The receipt's own deadline is the one that counts.
                        Err(_) => tokio::time::sleep(FOLLOWER_PAUSE).await,
                    }
                }
            }
        }
    }

    /// What vouches for the machine, with the evidence where there is some. A machine that must be inside TDX and does not
    /// prove it is not taken.
    fn vouch(&self, home: &Home, receipt: &SshAccessReceipt) -> Result<(Vouched, Option<Vec<u8>>)> {
        let missing = || CliError::fault("internal", "the grant was not kept");
        let grant = self.cleared.as_ref().ok_or_else(missing)?;
        let workload = Workload {
            organism: self.session.compute.id,
            params: &self.session.compute.params,
            request: self.id,
            image: grant.image_hash,
            expected_mrtd: grant.expected_mrtd,
            host_key: receipt.ssh_host_key.0,
            requested_ms: self.grant.as_ref().ok_or_else(missing)?.file.requested_ms,
        };
        let evidence = match receipt.posture {
            Posture::Attested { quote } => self.image.evidence(quote),
            _ => None,
        };
        let judged = evidence.as_ref().and_then(|bytes| Evidence::from_bytes(bytes).ok());
        let own = Directory::new(home.collateral());
        let verdict = judged.and_then(|evidence| attestation::judge(&workload, &evidence, &own, now_ms()));
        let evidence = evidence.filter(|_| verdict.is_some());
        Ok((attestation::vouch(grant.tdx_required, receipt.posture, verdict)?, evidence))
    }

    /// Takes back what the market knows of this request, and adds to the error what could not be taken back.
    async fn release(&mut self, error: CliError) -> CliError {
        let Some(mut grant) = self.grant.take() else { return error };
        if matches!(error.kind(), Kind::Refused) && self.cleared.is_none() {
            let _ = grant.update(|file| file.stage = Stage::Ended);
            return error;
        }
        let withdraw = self.sign(WithdrawRequest { request_id: self.id }).map(Command::WithdrawRequest);
        let end = self.sign(EndGrant { grant_id: self.id }).map(Command::EndGrant);
        // Clearing may have happened meanwhile, so both are tried; each is refused where the other applies.
        for (command, stage) in [(withdraw, Stage::Withdrawn), (end, Stage::Ended)] {
            let Ok(command) = command else { continue };
            match self.write(command).await {
                Ok(_) => {
                    let _ = grant.update(|file| file.stage = stage);
                    return error.and_hint(match stage {
                        Stage::Withdrawn => "the request was withdrawn; nothing is left to pay for",
                        _ => "the grant was ended; the provider stops it and logs what was used",
                    });
                }
                Err(failed) if failed.code() == "unknown_request" || failed.code() == "grant_ended" => return error,
                Err(_) => {}
            }
        }
        let cost = self.cleared.as_ref().and_then(ComputeGrant::full_cost);
        let cost = cost.map_or_else(|| "nothing unless it is granted".to_owned(), |cost| format!("up to {cost}"));
        error
            .remains(format!("request {}, which could not be taken back; it costs {cost}", self.id))
            .and_hint(&format!("release it with `coalition end {}`", short(&self.id)))
    }

    fn sign<T: Statement>(&self, statement: T) -> Result<Signed<T>> {
        let key = SigningKey::from_bytes(self.key.expose());
        Signed::sign(statement, &key, &self.session.compute.id)
            .or_input("request_invalid", || "the request is not valid".into())
    }

    async fn write(&self, command: Command) -> Result<Committed> {
        write(&self.organism, &command).await
    }
}

/// Writes a command to the market and waits for its certificate.
///
/// # Errors
/// [`Kind::Refused`] with the machine's own code, [`Kind::TimedOut`] when nobody certified it in time.
pub(crate) async fn write(market: &Organism, command: &Command) -> Result<Committed> {
    market.write(random_write_id(), command.to_bytes(), WRITE_WAIT).await.map_err(|error| match error {
        WriteError::Refused(refusal) => CliError::new(Kind::Refused, refusal.code, refusal.message),
        WriteError::Retired(retirement) => retired(&retirement),
        error @ WriteError::NotAdmitted { .. } => CliError::new(Kind::Refused, "not_admitted", error.to_string())
            .hint("this market admits by ticket: `coalition ticket peer` prints the peer to have one issued to"),
        other => CliError::new(Kind::TimedOut, "not_certified", "the committee did not certify it").because(other),
    })
}

fn retired(retirement: &Retirement) -> CliError {
    CliError::new(Kind::Refused, "retired", format!("the market has retired ({retirement})"))
        .hint(where_next(retirement))
}

/// A stable code as words: `no_capacity` reads "no capacity".
pub(crate) fn word<T: serde::Serialize>(code: &T) -> String {
    match serde_json::to_value(code) {
        Ok(Value::String(code)) => code.replace('_', " "),
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

fn no_receipt(waited: Duration, error: coalition_unseal::ShuffleError) -> CliError {
    let message = format!("the provider sent no receipt within {}", values::duration(waited));
    CliError::new(Kind::TimedOut, "no_receipt", message).because(error)
}

/// The provider has the image: from here, from a store, or from an earlier grant with the same blake3.
fn announce_image(wanted: &Wanted, from_here: bool, steps: &mut Steps) {
    let how = match (from_here, wanted.stores.is_empty()) {
        (true, _) => "fetched the image from here",
        (false, true) => "had the image already",
        (false, false) => "had the image, or fetched it from a store",
    };
    let (kib, hash) = (wanted.size_bytes.div_ceil(1_024), wanted.hash.to_string());
    let text = format!("the provider {how}, {kib} KiB, blake3 {}…", &hash[..8]);
    steps.done(
        "provisioning",
        &text,
        json!({ "image_bytes": wanted.size_bytes, "image_hash": hash, "fetched": from_here }),
    );
}

/// The moment of a grant's clearing, for looking at its provider's card as the committee did.
fn view_time(grant: &ComputeGrant) -> At {
    At { tick: grant.valid_from.0, time_ms: grant.valid_to_ms.saturating_sub(u64::from(grant.duration_sec) * 1_000) }
}

fn announce_receipt(grant: &Grant, verdict: Option<&Verdict>, steps: &mut Steps) {
    let Some(access) = &grant.file.access else { return };
    let vouched = posture_line(&access.posture, &access.isolation, steps.output());
    let text = format!("{}@{} port {}; {vouched}", access.user, access.host, access.port);
    let fields = json!({
        "grant": grant.file.grant, "host": access.host, "port": access.port, "user": access.user,
        "isolation": access.isolation, "posture": access.posture, "attestation": verdict, "key_file": grant.key_path(),
        "known_hosts": grant.known_hosts_path(), "valid_to_ms": grant.file.cleared.as_ref().map(|cleared| cleared.valid_to_ms),
    });
    steps.done("receipt", &text, fields);
}

/// Wall clock, Unix milliseconds.
#[must_use]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
