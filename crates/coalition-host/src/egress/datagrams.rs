//! Datagrams: each pair of ends is a flow with a socket of its own on the host, for as long as something passes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::addresses::GATEWAY;
use super::packet::{Unreachable, datagram, unreachable};
use super::resolver::bound;
use super::rules::Transport;
use super::stack::{DNS_PORT, Ends, Stack};

/// Flows of a grant at one time; the one that was silent longest gives way.
const FLOWS: usize = 256;
/// A flow that is silent so long is over.
const SILENCE: Duration = Duration::from_secs(60);
/// Datagrams that wait for a flow's turn; further ones are lost.
const WAITING: usize = 32;
/// Questions about names at one time; further ones are lost, and asked again by whoever asked.
const QUESTIONS: usize = 64;

/// The flows there are.
#[derive(Default)]
pub(super) struct Datagrams {
    flows: RefCell<HashMap<Ends, Flow>>,
    questions: Cell<usize>,
}

struct Flow {
    queue: mpsc::Sender<Vec<u8>>,
    last: Instant,
    task: AbortHandle,
}

impl Datagrams {
    /// Passes a datagram to its flow, when there is one.
    fn give(&self, ends: Ends, payload: Vec<u8>) -> Option<Vec<u8>> {
        match self.flows.borrow_mut().get_mut(&ends) {
            Some(flow) => {
                flow.last = Instant::now();
                let _ = flow.queue.try_send(payload);
                None
            }
            None => Some(payload),
        }
    }

    fn make_room(&self) {
        let mut flows = self.flows.borrow_mut();
        if flows.len() < FLOWS {
            return;
        }
        let oldest = flows.iter().min_by_key(|(_, flow)| flow.last).map(|(ends, _)| *ends);
        if let Some(flow) = oldest.and_then(|ends| flows.remove(&ends)) {
            flow.task.abort();
        }
    }
}

impl Stack {
    /// Passes a datagram on.
    ///
    /// # Errors
    /// What its sender is to be told.
    pub(super) fn pass_on(self: &Rc<Self>, ends: Ends, payload: Vec<u8>) -> Result<(), Unreachable> {
        if ends.1.ip() == GATEWAY {
            if ends.1.port() != DNS_PORT {
                return Err(Unreachable::Port);
            }
            self.ask(ends, payload);
            return Ok(());
        }
        let Some(payload) = self.datagrams.give(ends, payload) else { return Ok(()) };
        if !self.allows(ends.1, Transport::Udp) {
            return Err(Unreachable::Prohibited);
        }
        self.datagrams.make_room();
        let (queue, waiting) = mpsc::channel(WAITING);
        let _ = queue.try_send(payload);
        let stack = Rc::clone(self);
        let task = tokio::task::spawn_local(async move {
            if let Err(why) = flow(&stack, ends, waiting).await {
                let lost = datagram(ends.0, ends.1, &[]);
                lost.and_then(|lost| unreachable(&lost, why)).iter().for_each(|told| stack.give_back(told));
            }
            stack.datagrams.flows.borrow_mut().remove(&ends);
        });
        let flow = Flow { queue, last: Instant::now(), task: task.abort_handle() };
        self.datagrams.flows.borrow_mut().insert(ends, flow);
        Ok(())
    }

    /// Answers a question about a name.
    fn ask(self: &Rc<Self>, ends: Ends, question: Vec<u8>) {
        let asking = self.datagrams.questions.get();
        if asking >= QUESTIONS {
            return self.traffic.refuse();
        }
        self.datagrams.questions.set(asking + 1);
        let stack = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let answer = stack.answer(&question, true).await.unwrap_or_default();
            stack.datagrams.questions.set(stack.datagrams.questions.get().saturating_sub(1));
            stack.reply(ends, &answer, question.len()).await;
        });
    }

    /// Gives an answer to the workload; paid for together with what it is the answer to.
    async fn reply(&self, (workload, other): Ends, payload: &[u8], and_so_many: usize) {
        if !payload.is_empty() {
            datagram(other, workload, payload).iter().for_each(|packet| self.give_back(packet));
        }
        self.traffic.pass(payload.len() + and_so_many).await;
    }

    fn give_back(&self, packet: &[u8]) {
        self.inner.borrow().device.send(packet);
    }
}

/// Carries one flow until it is silent. A port that nobody listens on ends it, too.
async fn flow(stack: &Stack, ends: Ends, mut waiting: mpsc::Receiver<Vec<u8>>) -> Result<(), Unreachable> {
    let nobody = |_| Unreachable::Port;
    let socket = bound(ends.1.ip()).await.map_err(nobody)?;
    socket.connect(ends.1).await.map_err(nobody)?;
    let mut piece = vec![0; usize::from(u16::MAX)];
    loop {
        tokio::select! {
            payload = waiting.recv() => {
                let Some(payload) = payload else { return Ok(()) };
                socket.send(&payload).await.map_err(nobody)?;
                stack.traffic.pass(payload.len()).await;
            }
            length = socket.recv(&mut piece) => {
                let length = length.map_err(nobody)?;
                touch(stack, ends);
                let packet = datagram(ends.1, ends.0, &piece[..length]);
                packet.iter().for_each(|packet| stack.give_back(packet));
                stack.traffic.pass(length).await;
            }
            () = tokio::time::sleep(SILENCE) => return Ok(()),
        }
    }
}

fn touch(stack: &Stack, ends: (SocketAddr, SocketAddr)) {
    stack.datagrams.flows.borrow_mut().get_mut(&ends).into_iter().for_each(|flow| flow.last = Instant::now());
}
