//! One member process: `member INDEX DATA_DIR ORDER_ADDRESSES NODE_ADDRESSES RELAY_URL STATE_EVERY GENESIS_MEMBERS`. Says `ready`, ends when stdin closes.

use std::{io::Read, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use coalition::{UniqueId, codec};
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{BatchKeeping, Member, MemberKeys, MemberSetup, OrderSetup, OrganismSetup};
use coalition_testkit::{key, roster};
use coalition_universe::{Node, NodeConfig, UNIVERSE};

use crate::committee::{ORGANISM, peer};

/// Commits every command, and refuses the same content twice: a write that took effect twice would show. Keeps a digest of each.
#[derive(Default)]
pub struct Register {
    seen: std::collections::BTreeSet<UniqueId>,
}

impl Machine for Register {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        if self.seen.contains(&digest(command)) {
            return Err(Refusal::new("twice", "this content is in the log already"));
        }
        Ok(vec![Draft::new("register", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, entry: &Entry) {
        assert!(self.seen.insert(digest(&entry.body)), "entry {} repeats an earlier one", entry.index);
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&self.seen)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.seen = codec::decode(snapshot, MAX_STATE_BYTES)?;
        Ok(())
    }
}

fn digest(content: &[u8]) -> UniqueId {
    UniqueId::from_bytes(*blake3::hash(content).as_bytes())
}

pub fn main(arguments: &[String]) -> ExitCode {
    let [index, dir, order, nodes, relay, state_every, genesis] = arguments else { panic!("{arguments:?}") };
    // RUST_LOG in the harness's environment has members say more in their files.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let list = |text: &str| text.split(',').map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(run(Arguments {
        index: index.parse().unwrap(),
        data_dir: PathBuf::from(dir),
        order: list(order),
        nodes: list(nodes),
        relay: relay.clone(),
        state_every: state_every.parse().unwrap(),
        genesis: genesis.parse().unwrap(),
    }));
    runtime.shutdown_timeout(Duration::from_millis(200));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    index: usize,
    data_dir: PathBuf,
    order: Vec<SocketAddr>,
    nodes: Vec<SocketAddr>,
    relay: String,
    state_every: u64,
    genesis: usize,
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let Arguments { index, data_dir, order, nodes, relay, state_every, genesis } = arguments;
    std::fs::create_dir_all(&data_dir).map_err(|error| error.to_string())?;
    let config = NodeConfig {
        network_id: UNIVERSE.derive("torture"),
        key: key(index, 3),
        bootstrap: (0..nodes.len()).filter(|at| *at != index).map(|at| peer(at, nodes[at], &relay)).collect(),
        relay,
        bind: Some(nodes[index]),
        // A member must work while it is cut off from the relay.
        public: false,
        start_timeout: Duration::from_secs(20),
    };
    let node = Node::start(config).await.map_err(|error| error.to_string())?;
    let roster = roster(genesis);
    let organism = OrganismSetup {
        predecessor: None,
        door: None,
        id: UniqueId::from_bytes(ORGANISM),
        name: "register".into(),
        machine: Box::<Register>::default(),
        clock: None,
        state_every,
    };
    let listen = order[index];
    let book: Vec<_> = (0..).map(|member| *key(member, 2).peer_id().as_bytes()).zip(order).collect();
    let find = move |member: &coalition::RosterMember| {
        book.iter().find(|(key, _)| *key == member.consensus_key).map(|(_, address)| *address)
    };
    let setup = MemberSetup {
        roster,
        name: format!("m{index}"),
        joins: index >= genesis,
        node: std::sync::Arc::clone(&node),
        keys: MemberKeys { consensus: key(index, 2), checkpoint: key(index, 1) },
        order: OrderSetup { listen, addresses: Box::new(find), heartbeat_ms: 1_000 },
        data_dir,
        organisms: vec![organism],
        retain_entries: None,
        batches: BatchKeeping::default(),
    };
    let member = Member::start(setup).await.map_err(|error| in_full(&error))?;
    node.serve(member.service());
    println!("ready");
    let asked = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        _ = asked => {}
        error = member.failed() => return Err(format!("the member failed: {}", in_full(&*error))),
        () = node.closed() => return Err("the node closed".into()),
    }
    node.stop().await;
    member.stop(Duration::from_secs(10)).await.map_err(|error| error.to_string())
}

/// An error and its causes, as the product's command prints them.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
