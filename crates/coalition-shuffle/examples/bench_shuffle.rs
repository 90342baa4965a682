//! Prints what each step of the shuffle costs: `cargo run --release -p coalition-shuffle --example bench_shuffle`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints; a failed step is a failed run")]

use std::hint::black_box;
use std::time::Instant;

use coalition::{RequestId, UniqueId};
use coalition_shuffle::tdh2::{combine, decrypt_share, encrypt};
use coalition_shuffle::{
    CellScope, Command, DealerOutput, Member, MemberLimits, Purpose, ReceiverKey, ReplyCell, RotatingPeer,
    SealedRequest, WorkloadSpec,
};
use rand_core::OsRng;

const ROUNDS: u32 = 200;

/// Median time of one call, in microseconds.
fn median_us<T>(mut step: impl FnMut() -> T) -> u128 {
    let mut times: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(step());
            start.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn workload() -> WorkloadSpec {
    WorkloadSpec {
        image_hash: UniqueId::hash(b"image"),
        image_size_bytes: 1 << 20,
        requested_region: None,
        image_pointer: vec![1; 200],
        cpu_millicores: 1_000,
        ram_mib: 256,
        disk_mib: 0,
        command: Vec::new(),
        env: Vec::new(),
        ssh_authorized_key: None,
    }
}

fn seal() {
    let key = ReceiverKey::generate(&mut OsRng);
    let public = key.public();
    let scope = CellScope { coalition: UniqueId::from_u8(1), compute: UniqueId::from_u8(2) };
    let context = scope.seal_context(RequestId(UniqueId::from_u8(3)));
    let receipt = [7; 900];
    let seal = || ReplyCell::seal(&receipt, Purpose::SshReceipt, &public, &context, &mut OsRng).unwrap();
    let sealed = seal();
    let open = || sealed.open(&key, Purpose::SshReceipt, &context).unwrap();
    println!("reply cell: seal {} µs, open {} µs", median_us(seal), median_us(open));
}

fn threshold(t: u8, n: u8) {
    let dealt = DealerOutput::deal(t, n, &mut OsRng).unwrap();
    let params = &dealt.params;
    let payload = [7; 3_919];
    let encrypt = || encrypt(params, b"label", &payload, &mut OsRng);
    let made = encrypt();
    let verified = made.clone().verify(params, b"label").unwrap();
    let share = || decrypt_share(params, &dealt.shares[0], &verified, &mut OsRng).unwrap();
    let one = share();
    let check = || one.verify(params, &verified).unwrap();
    let shares: Vec<_> = dealt.shares[..usize::from(t)]
        .iter()
        .map(|key| decrypt_share(params, key, &verified, &mut OsRng).unwrap().verify(params, &verified).unwrap())
        .collect();
    let read = || coalition_shuffle::PublicParams::from_bytes(params.to_bytes()).unwrap();
    println!(
        "threshold {t} of {n}: encrypt {} µs, ciphertext check {} µs, share {} µs, share check {} µs, combine {} µs, \
         read parameters {} µs",
        median_us(encrypt),
        median_us(|| made.clone().verify(params, b"label").unwrap()),
        median_us(share),
        median_us(check),
        median_us(|| combine(params, &verified, &shares).unwrap()),
        median_us(read),
    );
}

fn member() {
    let dealt = DealerOutput::deal(2, 3, &mut OsRng).unwrap();
    let scope = CellScope { coalition: UniqueId::from_u8(1), compute: UniqueId::from_u8(2) };
    let limits = MemberLimits::default();
    let mut member = Member::new(dealt.params.clone(), dealt.shares[0].clone(), scope, limits).unwrap();
    let key = ReceiverKey::generate(&mut OsRng);
    let mut commands: Vec<Command> = (0..ROUNDS)
        .map(|n| {
            let peer = RotatingPeer::from_bytes(*UniqueId::from_u32(n).as_bytes());
            let envelope =
                coalition_shuffle::Envelope { peer_id: peer, peer_x25519: key.public(), workload: workload() };
            let request = RequestId(UniqueId::from_u32(n));
            let sealed = SealedRequest::build(&envelope, &dealt.params, &scope, request, &mut OsRng).unwrap();
            Command::SubmitCell { from_peer: peer, cell: sealed.cell.as_bytes().to_vec() }
        })
        .collect();
    let submit = median_us(|| member.apply(1, &commands.pop().unwrap(), &mut OsRng).unwrap());
    println!("member: submit {submit} µs");
}

fn main() {
    seal();
    for (t, n) in [(2, 3), (3, 5), (5, 7), (43, 64)] {
        threshold(t, n);
    }
    member();
}
