#![no_main]
//! Every message between members, and between clients and members. The first byte says which.
#![allow(dead_code)]

#[path = "../../crates/coalition-organism/src/wire.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// Postcard reads some numbers in more than one form, so a message is not its only encoding; what is written comes back.
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = wire::decode::<T>(bytes) {
        let written = wire::encode(&message);
        assert!(written.len() <= bytes.len());
        assert_eq!(wire::decode::<T>(&written).expect("what is written is read"), message);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 18 {
        0 => round_trip::<wire::Ordered>(bytes),
        1 => round_trip::<wire::Gossip>(bytes),
        2 => round_trip::<wire::WriteRequest>(bytes),
        3 => round_trip::<wire::WriteReply>(bytes),
        4 => round_trip::<wire::HeadRequest>(bytes),
        5 => round_trip::<wire::FollowRequest>(bytes),
        6 => round_trip::<wire::FollowAnswer>(bytes),
        7 => round_trip::<wire::EvidenceRequest>(bytes),
        8 => round_trip::<wire::HeadAnswer>(bytes),
        9 => round_trip::<wire::StateRequest>(bytes),
        10 => round_trip::<wire::StateAnswer>(bytes),
        11 => round_trip::<wire::Handovers>(bytes),
        12 => round_trip::<wire::HashesRequest>(bytes),
        13 => round_trip::<wire::AnchorRequest>(bytes),
        14 => round_trip::<wire::ChallengeRequest>(bytes),
        15 => round_trip::<wire::ChallengeAnswer>(bytes),
        16 => round_trip::<wire::AdmitRequest>(bytes),
        _ => round_trip::<wire::AdmitAnswer>(bytes),
    }
});
