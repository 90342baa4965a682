//! In front of moto: fails on demand, remembers client tokens as EC2 does, and adds what moto lacks: quotas, and what
//! CloudWatch counts of instances.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use bytes::Bytes;
use coalition_cloud_double::{Boot, Counter, Phase, Watcher, form, next_address};

use crate::http::{between, client};

/// How one call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// AWS refuses with this code and status; moto never hears of it.
    Refuse(&'static str, u16),
    /// Moto does it; the connection ends in the middle of the answer.
    LoseAnswer,
    /// Moto does it; the answer is not XML.
    Garble,
    /// Moto is asked, and what it lists is left out: EC2 shows new things late.
    ShowNothing,
    /// This is answered; moto never hears of it.
    Answer(String),
}

/// One call as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `RunInstances`, …
    pub action: String,
    /// All parameters.
    pub params: BTreeMap<String, String>,
    /// The body, as sent.
    pub body: Bytes,
}

struct Inner {
    upstream: String,
    http: reqwest::Client,
    boot: Option<Arc<dyn Boot>>,
    watcher: Watcher,
    served: Counter,
    faults: Mutex<Vec<(String, VecDeque<Fault>)>>,
    blind: AtomicBool,
    no_addresses: AtomicBool,
    quota: AtomicU32,
    calls: Mutex<Vec<Call>>,
    /// By client token: parameters, and the answer that was given.
    tokens: Mutex<BTreeMap<String, (Bytes, Bytes)>>,
    addresses: Mutex<BTreeMap<String, Ipv4Addr>>,
    ended: Mutex<BTreeSet<String>>,
}

/// The proxy; ends with the runtime it was started on.
pub struct Proxy {
    inner: Arc<Inner>,
    /// Where it listens, as a URL.
    pub endpoint: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts it in front of `upstream`.
    pub async fn start(upstream: &str, boot: Option<Arc<dyn Boot>>) -> Self {
        let inner = Arc::new(Inner {
            upstream: upstream.to_owned(),
            http: client(),
            boot,
            watcher: Watcher::default(),
            served: Counter::default(),
            faults: Mutex::default(),
            blind: AtomicBool::new(false),
            no_addresses: AtomicBool::new(false),
            quota: AtomicU32::new(32),
            calls: Mutex::default(),
            tokens: Mutex::default(),
            addresses: Mutex::default(),
            ended: Mutex::default(),
        });
        let router = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it has an address");
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { inner, endpoint: format!("http://{address}"), serving }
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

    /// Counts what is answered; the time is mostly moto's.
    #[must_use]
    pub fn served(&self) -> &Counter {
        &self.inner.served
    }

    /// All calls fail from now on, or none any more: AWS has an outage.
    pub fn blind(&self, blind: bool) {
        self.inner.blind.store(blind, Ordering::SeqCst);
    }

    /// Machines get no address, from now on or no longer.
    pub fn no_addresses(&self, none: bool) {
        self.inner.no_addresses.store(none, Ordering::SeqCst);
    }

    /// What the account's quota is said to be, in vCPUs.
    pub fn quota(&self, vcpus: u32) {
        self.inner.quota.store(vcpus, Ordering::SeqCst);
    }

    /// Every call so far, failed ones included.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.inner.calls).clone()
    }

    /// How often this action was called.
    #[must_use]
    pub fn count(&self, action: &str) -> usize {
        lock(&self.inner.calls).iter().filter(|call| call.action == action).count()
    }

    /// Ends a machine as if somebody had done it in AWS's own console: nobody asked the proxy.
    pub fn pull_the_plug(&self, id: &str) {
        if let Some(boot) = &self.inner.boot {
            boot.power_off(id);
        }
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

/// The action that was called, and its answer.
async fn answer(inner: &Inner, request: Request) -> (String, Response) {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
    let params = form(&String::from_utf8_lossy(&body));
    let target = head.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let action = match target.and_then(|target| target.rsplit('.').next()) {
        Some(action) => action.to_owned(),
        None => params.get("Action").cloned().unwrap_or_default(),
    };
    lock(&inner.calls).push(Call { action: action.clone(), params: params.clone(), body: body.clone() });
    inner.watcher.tell(&action, Phase::Before);
    let answer = respond(inner, &head.headers, &body, &params, &action, target.is_some()).await;
    (action, answer)
}

async fn respond(
    inner: &Inner,
    headers: &axum::http::HeaderMap,
    body: &Bytes,
    params: &BTreeMap<String, String>,
    action: &str,
    is_json: bool,
) -> Response {
    if inner.blind.load(Ordering::SeqCst) {
        return refuse("ServiceUnavailable", 503, is_json);
    }
    let fault = next_fault(inner, action);
    match &fault {
        Some(Fault::Refuse(code, status)) => return refuse(code, *status, is_json),
        Some(Fault::Answer(text)) => return plain(200, Bytes::from(text.clone())),
        _ => {}
    }
    let (status, answer) = match action {
        "GetServiceQuota" => (200, quota(inner.quota.load(Ordering::SeqCst))),
        "GetMetricData" => metrics(inner, headers, body, fault == Some(Fault::ShowNothing)).await,
        "RunInstances" => run(inner, headers, body, params).await,
        "TerminateInstances" => terminate(inner, headers, body, params).await,
        _ => forward(inner, headers, body).await,
    };
    match fault {
        Some(Fault::LoseAnswer) => lost(),
        Some(Fault::Garble) => plain(200, Bytes::from_static(b"<Response><unfinished")),
        Some(Fault::ShowNothing) if !is_json => plain(200, Bytes::from_static(b"<R><reservationSet/><volumeSet/></R>")),
        _ => plain(status, shown(inner, &answer)),
    }
}

fn next_fault(inner: &Inner, action: &str) -> Option<Fault> {
    let mut faults = lock(&inner.faults);
    let queue = faults.iter_mut().find(|(name, queue)| name == action && !queue.is_empty())?;
    queue.1.pop_front()
}

async fn forward(inner: &Inner, headers: &axum::http::HeaderMap, body: &Bytes) -> (u16, Bytes) {
    let mut request = inner.http.post(&inner.upstream).body(body.clone());
    for (name, value) in headers {
        // With the host the client signed.
        request = request.header(name, value);
    }
    match request.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            (status, answer.bytes().await.unwrap_or_default())
        }
        Err(error) => (502, Bytes::from(error.to_string())),
    }
}

/// Idempotent by client token, as EC2 is and moto is not; a dry run remembers nothing.
async fn run(
    inner: &Inner,
    headers: &axum::http::HeaderMap,
    body: &Bytes,
    params: &BTreeMap<String, String>,
) -> (u16, Bytes) {
    let token = params.get("ClientToken").filter(|_| !params.contains_key("DryRun")).cloned();
    if let Some((before, answer)) = token.as_ref().and_then(|token| lock(&inner.tokens).get(token).cloned()) {
        if before == *body {
            return (200, answer);
        }
        return (400, error("IdempotentParameterMismatch"));
    }
    let (status, answer) = forward(inner, headers, body).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    if let (200, Some(id)) = (status, between(&text, "instanceId")) {
        if let Some(token) = token {
            lock(&inner.tokens).insert(token, (body.clone(), answer.clone()));
        }
        boot(inner, &id, params);
    }
    (status, answer)
}

fn boot(inner: &Inner, id: &str, params: &BTreeMap<String, String>) {
    let mut addresses = lock(&inner.addresses);
    let address = next_address();
    addresses.insert(id.to_owned(), address);
    drop(addresses);
    let user_data = params.get("UserData").map(String::as_str).unwrap_or_default();
    let user_data = base64::engine::general_purpose::STANDARD.decode(user_data).unwrap_or_default();
    if let Some(boot) = &inner.boot {
        boot.boot(id, address, &user_data);
    }
}

/// Ending what is over succeeds on EC2; moto stumbles over its network interface.
async fn terminate(
    inner: &Inner,
    headers: &axum::http::HeaderMap,
    body: &Bytes,
    params: &BTreeMap<String, String>,
) -> (u16, Bytes) {
    let ids: Vec<&String> = params.iter().filter(|(key, _)| key.starts_with("InstanceId.")).map(|(_, id)| id).collect();
    let ended = lock(&inner.ended).clone();
    if !ids.is_empty() && ids.iter().all(|id| ended.contains(*id)) {
        let state = "<currentState><code>48</code><name>terminated</name></currentState>";
        let item = |id: &&String| format!("<item><instanceId>{id}</instanceId>{state}</item>");
        let items: String = ids.iter().map(item).collect();
        let answer =
            format!("<TerminateInstancesResponse><instancesSet>{items}</instancesSet></TerminateInstancesResponse>");
        return (200, Bytes::from(answer));
    }
    let (status, answer) = forward(inner, headers, body).await;
    if status == 200 {
        for id in ids {
            lock(&inner.ended).insert(id.clone());
            if let Some(boot) = &inner.boot {
                boot.power_off(id);
            }
        }
    }
    (status, answer)
}

/// Moto's answer with the addresses machines have here.
fn shown(inner: &Inner, answer: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(answer);
    if !text.contains("<ipAddress>") {
        return answer.clone();
    }
    let addresses = lock(&inner.addresses).clone();
    let hidden = inner.no_addresses.load(Ordering::SeqCst);
    let mut parts = text.split("<instanceId>");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("<instanceId>");
        let id = part.split('<').next().unwrap_or_default();
        let old = between(part, "ipAddress");
        match (old, addresses.get(id)) {
            (Some(old), _) if hidden => out.push_str(&part.replace(&format!("<ipAddress>{old}</ipAddress>"), "")),
            (Some(old), Some(address)) => {
                let (from, to) = (format!("<ipAddress>{old}<"), format!("<ipAddress>{address}<"));
                out.push_str(&part.replace(&from, &to));
            }
            _ => out.push_str(part),
        }
    }
    Bytes::from(out)
}

fn quota(vcpus: u32) -> Bytes {
    Bytes::from(format!("{{\"Quota\":{{\"QuotaCode\":\"L-1216C47A\",\"Value\":{vcpus}.0}}}}"))
}

fn error(code: &str) -> Bytes {
    Bytes::from(format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>as the test has it</Message></Error></Errors></Response>"
    ))
}

fn refuse(code: &str, status: u16, is_json: bool) -> Response {
    let in_json = || Bytes::from(format!("{{\"__type\":\"{code}\",\"message\":\"as the test has it\"}}"));
    plain(status, if is_json { in_json() } else { error(code) })
}

/// Moto judges signature and permission, and counts nothing of instances: of those that were booted here, every metric has two
/// points, with a number that tells it from the others.
async fn metrics(inner: &Inner, headers: &axum::http::HeaderMap, body: &Bytes, is_late: bool) -> (u16, Bytes) {
    let (status, answer) = forward(inner, headers, body).await;
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if status != 200 {
        return (status, answer);
    }
    let known = lock(&inner.addresses).clone();
    let result = |query: &serde_json::Value| {
        let stat = &query["MetricStat"];
        let instance = stat["Metric"]["Dimensions"][0]["Value"].as_str().unwrap_or_default();
        let metric = stat["Metric"]["MetricName"].as_str().unwrap_or_default();
        let number = METRICS.iter().find(|(name, _)| *name == metric).map(|(_, number)| *number);
        let is_known = known.contains_key(instance) && !is_late;
        let (from_s, period_s) = (asked["StartTime"].as_u64()?, stat["Period"].as_u64()?);
        let values: Vec<f64> = number.filter(|_| is_known).map_or_else(Vec::new, |number| vec![number, number]);
        let timestamps: Vec<u64> = values.iter().zip(0..).map(|(_, n)| from_s + n * period_s).collect();
        let (id, code) = (&query["Id"], "Complete");
        Some(
            serde_json::json!({ "Id": id, "Label": metric, "Timestamps": timestamps, "Values": values, "StatusCode": code }),
        )
    };
    let results: Option<Vec<_>> =
        asked["MetricDataQueries"].as_array().map(|all| all.iter().filter_map(result).collect());
    let body = serde_json::json!({ "MetricDataResults": results.unwrap_or_default(), "Messages": [] });
    (200, Bytes::from(body.to_string()))
}

/// What is counted of an instance in each period.
const METRICS: [(&str, f64); 3] = [("CPUUtilization", 12.5), ("NetworkIn", 1_000_000.0), ("NetworkOut", 500_000.5)];

fn plain(status: u16, body: Bytes) -> Response {
    Response::builder().status(status).body(Body::from(body)).expect("a status and a body make an answer")
}

/// An answer that ends in the middle.
fn lost() -> Response {
    let parts = [Ok(Bytes::from_static(b"<RunInst")), Err(std::io::Error::other("the line is cut"))];
    let body = Body::from_stream(futures::stream::iter(parts));
    Response::builder().status(200).body(body).expect("a status and a body make an answer")
}
