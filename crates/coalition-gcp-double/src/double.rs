//! The server, and what a test can make it do.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use coalition_cloud_double::{Boot, Counter, Phase, Watcher, form};
use serde_json::{Value, json};

use crate::answer::{endless, flavoured, lost, ok, plain, refusal};
use crate::api::{Route, call, route};
use crate::auth::{Auth, key_file};
use crate::world::World;
use crate::{EMAIL, PROJECT};

/// Longest request read, in bytes.
const MAX_REQUEST: usize = 1 << 20;

/// How one call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Google refuses with this reason and status; nothing is done.
    Refuse(&'static str, u16),
    /// Google says that it was asked too often, and when to ask again, seconds.
    Throttle(u64),
    /// The request is taken, and its operation ends with this code and HTTP status: nothing comes of it.
    FailOperation(&'static str, u16),
    /// The operation takes so long.
    Slow(Duration),
    /// It is done; the connection ends in the middle of the answer.
    LoseAnswer,
    /// It is done; the answer is not JSON.
    Garble,
    /// It is done; the answer never ends.
    Endless,
    /// What is listed is left out: new things are shown late.
    ShowNothing,
    /// This is answered; nothing is done.
    Answer(String),
}

/// One call as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `instances.insert`, …, or `token`.
    pub action: String,
    /// With the query.
    pub path: String,
    /// The body, as sent.
    pub body: Bytes,
}

struct Inner {
    world: Mutex<World>,
    auth: Mutex<Auth>,
    watcher: Watcher,
    served: Counter,
    faults: Mutex<Vec<(String, VecDeque<Fault>)>>,
    is_blind: AtomicBool,
    calls: Mutex<Vec<Call>>,
    endpoint: String,
}

/// The double; ends with the runtime it was started on.
pub struct Double {
    inner: Arc<Inner>,
    /// Where it listens, as a URL.
    pub endpoint: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Double {
    /// Starts it. `role` is what the service account may do, a role's file as `gcloud iam roles create` takes it; `boot` is
    /// told of every machine that comes up and is ended.
    pub async fn start(role: &str, boot: Option<Arc<dyn Boot>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it has an address");
        let endpoint = format!("http://{address}");
        let inner = Arc::new(Inner {
            world: Mutex::new(World::new(boot)),
            auth: Mutex::new(Auth::new(role)),
            watcher: Watcher::default(),
            served: Counter::default(),
            faults: Mutex::default(),
            is_blind: AtomicBool::new(false),
            calls: Mutex::default(),
            endpoint: endpoint.clone(),
        });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { inner, endpoint, serving }
    }

    /// The text of the service account's key file.
    #[must_use]
    pub fn key_file(&self) -> String {
        key_file(&self.inner.token_uri(), false)
    }

    /// The same with a key that is not the service account's.
    #[must_use]
    pub fn stranger_key_file(&self) -> String {
        key_file(&self.inner.token_uri(), true)
    }

    /// The next calls of this action fail like this, one after the other.
    pub fn fail(&self, action: &str, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.inner.faults).push((action.to_owned(), faults.into_iter().collect()));
    }

    /// Is told of every call, by its action.
    #[must_use]
    pub fn watcher(&self) -> &Watcher {
        &self.inner.watcher
    }

    /// Counts what is answered.
    #[must_use]
    pub fn served(&self) -> &Counter {
        &self.inner.served
    }

    /// All calls fail from now on, or none any more: Google has an outage.
    pub fn blind(&self, is_blind: bool) {
        self.inner.is_blind.store(is_blind, Ordering::SeqCst);
    }

    /// Tokens that were given out are not known any more.
    pub fn revoke_tokens(&self) {
        lock(&self.inner.auth).revoke();
    }

    /// The service account's key is deleted: no token for it any more, and none that it got before.
    pub fn delete_key(&self) {
        let mut auth = lock(&self.inner.auth);
        auth.revoke();
        auth.is_key_gone = true;
    }

    /// Machines show no addresses on the internet from now on, or do again.
    pub fn hide_addresses(&self, hidden: bool) {
        lock(&self.inner.world).has_no_addresses = hidden;
    }

    /// Disks stay behind when their machines go.
    pub fn keep_disks(&self, kept: bool) {
        lock(&self.inner.world).are_disks_kept = kept;
    }

    /// Operations take so long from now on.
    pub fn slow(&self, takes: Duration) {
        lock(&self.inner.world).slowness = takes;
    }

    /// A quota of the region.
    pub fn set_quota(&self, metric: &str, vcpus: u32) {
        lock(&self.inner.world).quotas.insert(metric.to_owned(), vcpus);
    }

    /// What machines wrote to their consoles.
    pub fn set_console(&self, text: &str) {
        lock(&self.inner.world).console = text.to_owned();
    }

    /// Ids of requests are not known any more: Google keeps them for an hour or so.
    pub fn forget_requests(&self) {
        lock(&self.inner.world).requests.clear();
    }

    /// Pages of lists have at most so many things; none at all, and yet a next page, for 0.
    pub fn limit_pages(&self, most: usize) {
        lock(&self.inner.world).page = most;
    }

    /// What was to fail does not any more.
    pub fn forget_faults(&self) {
        lock(&self.inner.faults).clear();
    }

    /// So much time passes at once.
    pub fn pass_time(&self, passes: Duration) {
        let mut world = lock(&self.inner.world);
        world.ahead += passes;
        world.settle();
    }

    /// The machine of this name goes away, without its operator's doing: as after `shutdown` inside it (its disk stays, and
    /// it is listed), or, when not `is_listed`, altogether.
    pub fn stop_machine(&self, name: &str, is_listed: bool) {
        let mut world = lock(&self.inner.world);
        world.settle();
        let found = world.machines.values().find(|machine| machine.name == name).cloned();
        let Some(machine) = found else { return };
        world.power_off(&machine);
        let at = (machine.zone, machine.name);
        if !is_listed {
            world.machines.remove(&at);
            world.disks.retain(|_, disk| disk.user.as_ref() != Some(&at.1));
        } else if let Some(kept) = world.machines.get_mut(&at) {
            kept.status = "TERMINATED";
            kept.address = None;
        }
    }

    /// Names of the machines there are, with their status.
    #[must_use]
    pub fn machines(&self) -> Vec<(String, String)> {
        let mut world = lock(&self.inner.world);
        world.settle();
        world.machines.values().map(|machine| (machine.name.clone(), machine.status.to_owned())).collect()
    }

    /// Names of the disks there are.
    #[must_use]
    pub fn disks(&self) -> Vec<String> {
        let mut world = lock(&self.inner.world);
        world.settle();
        world.disks.values().map(|disk| disk.name.clone()).collect()
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.inner.calls).clone()
    }

    /// How often an action was called.
    #[must_use]
    pub fn count(&self, action: &str) -> usize {
        lock(&self.inner.calls).iter().filter(|call| call.action == action).count()
    }
}

impl Inner {
    fn token_uri(&self) -> String {
        format!("{}/token", self.endpoint)
    }

    fn next_fault(&self, action: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let queue = faults.iter_mut().find(|(name, queue)| name == action && !queue.is_empty())?;
        queue.1.pop_front()
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (watcher, served, began) = (inner.watcher.clone(), inner.served.clone(), Instant::now());
    // In a task of its own: what was asked for happens, also when whoever asked is gone before the answer.
    let answering = tokio::spawn(async move { answer(&inner, request).await });
    let (action, answer) = answering.await.expect("answering does not panic");
    served.count(answer.body().size_hint().lower(), began.elapsed());
    watcher.tell(&action, Phase::During);
    tokio::spawn(async move {
        // By then the answer has left: it goes out as soon as this task's parent yields.
        tokio::time::sleep(Duration::from_millis(1)).await;
        watcher.tell(&action, Phase::After);
    });
    answer
}

async fn answer(inner: &Inner, request: Request) -> (String, Response) {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MAX_REQUEST).await.unwrap_or_default();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    let meant = route(head.method.as_str(), &path);
    let is_metadata = path.starts_with("/computeMetadata/v1/");
    let action = match &meant {
        Some(route) => route.call.to_owned(),
        None if path == "/token" || is_metadata => "token".to_owned(),
        None => format!("{} {path}", head.method),
    };
    let shown = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
    lock(&inner.calls).push(Call { action: action.clone(), path: shown, body: body.clone() });
    inner.watcher.tell(&action, Phase::Before);
    if inner.is_blind.load(Ordering::SeqCst) {
        return (action, refusal(503, "backendError", "The service is currently unavailable.").response());
    }
    let fault = inner.next_fault(&action);
    match &fault {
        Some(Fault::Refuse(reason, status)) => {
            return (action, refusal(*status, reason, "as the test has it").response());
        }
        Some(Fault::Throttle(seconds)) => {
            let mut refused = refusal(429, "rateLimitExceeded", "Rate Limit Exceeded");
            refused.retry_after_s = Some(*seconds);
            return (action, refused.response());
        }
        Some(Fault::Answer(text)) => return (action, plain(200, text.clone())),
        _ => {}
    }
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let answered = match &meant {
        Some(route) => respond(inner, route, text("authorization"), &query, &body, fault.as_ref()),
        None if is_metadata => metadata(inner, &path, text("metadata-flavor")),
        None if action == "token" => token(inner, &body),
        None => refusal(404, "notFound", "Not Found").response(),
    };
    let answered = match fault {
        Some(Fault::LoseAnswer) => lost(),
        Some(Fault::Garble) => plain(200, Bytes::from_static(b"{\"kind\": unfinished")),
        Some(Fault::Endless) => endless(),
        Some(Fault::ShowNothing) => ok(&nothing(&action)),
        _ => answered,
    };
    (action, answered)
}

fn nothing(action: &str) -> Value {
    if action == "timeSeries.list" {
        return json!({});
    }
    let kind =
        if action.starts_with("disks") { "compute#diskAggregatedList" } else { "compute#instanceAggregatedList" };
    json!({ "kind": kind, "id": format!("projects/{PROJECT}/aggregated"), "items": {} })
}

fn respond(
    inner: &Inner,
    route: &Route,
    authorization: Option<&str>,
    query: &str,
    body: &Bytes,
    fault: Option<&Fault>,
) -> Response {
    let auth = lock(&inner.auth);
    let query: BTreeMap<String, String> = form(query);
    let done = auth.check(authorization).and_then(|()| {
        let mut world = lock(&inner.world);
        call(&mut world, &auth, route, &query, body, fault)
    });
    match done {
        Ok(body) => ok(&body),
        Err(refused) => refused.response(),
    }
}

/// The endpoint that a service account's key names.
fn token(inner: &Inner, body: &Bytes) -> Response {
    let form = form(&String::from_utf8_lossy(body));
    match lock(&inner.auth).exchange(&form, &inner.token_uri()) {
        Ok(token) => ok(&token),
        Err(error) => plain(400, error.to_string()),
    }
}

/// What a machine on Compute Engine asks for its own service account.
fn metadata(inner: &Inner, path: &str, flavor: Option<&str>) -> Response {
    if flavor != Some("Google") {
        return plain(403, "Your client does not have permission to get this URL.");
    }
    match path.strip_prefix("/computeMetadata/v1/instance/service-accounts/default/") {
        Some("token") => flavoured(lock(&inner.auth).give().to_string()),
        Some("email") => flavoured(EMAIL.to_owned()),
        _ => plain(404, "not found"),
    }
}
