#![no_main]
//! Certified states as members and readers load them: one encoding, and machines that take only what they write.

use std::sync::LazyLock;

use coalition_compute::{ComputeMachine, ComputeParams};
use coalition_fuzz::{damaged, organism};
use coalition_log::state::{HostState, KnownWrite};
use coalition_log::{Machine as _, entry::WriteId};
use libfuzzer_sys::fuzz_target;

const COVERS: u64 = 5;

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let state = HostState {
        organism: organism(),
        covers: COVERS,
        host_entries: Vec::new(),
        writes: vec![KnownWrite { id: WriteId([7; 16]), first: 1, count: 2 }],
        ticks: vec![(1_000, 1), (2_000, 2)],
        machine: market().snapshot(),
    };
    state.to_bytes().expect("a small state")
});

fn market() -> ComputeMachine {
    ComputeMachine::new(organism(), ComputeParams::standard(1_000)).expect("sound parameters")
}

fn load(bytes: &[u8]) {
    let Ok(state) = HostState::from_bytes(bytes, organism(), COVERS) else { return };
    assert_eq!(state.to_bytes().as_deref(), Some(bytes));
    state.decode_host_entries().expect("checked when read");
    restore(&state.machine);
}

fn restore(snapshot: &[u8]) {
    let mut market = market();
    if market.restore(snapshot).is_ok() {
        assert_eq!(market.snapshot(), snapshot);
    }
}

fuzz_target!(|data: &[u8]| {
    load(data);
    load(&damaged(&SOUND, data));
    restore(data);
});
