#![no_main]
//! A proposed batch as consensus carries it: one encoding, within its limits.
#![allow(dead_code)]

#[path = "../../crates/coalition-order/src/block.rs"]
mod block;
#[path = "../../crates/coalition-order/src/command.rs"]
mod command;

use block::{BatchBlock, BlockLimits};
use commonware_codec::{Decode as _, Encode as _, EncodeSize as _};
use commonware_consensus::BoundedBlock as _;
use libfuzzer_sys::fuzz_target;

const LIMITS: BlockLimits = BlockLimits { max_bytes: 2_000, max_commands: 20, max_command_bytes: 500 };

fuzz_target!(|data: &[u8]| {
    if let Ok(block) = BatchBlock::decode_cfg(bytes::Bytes::copy_from_slice(data), &LIMITS) {
        assert_eq!(block.encode().to_vec(), data);
        assert_eq!(block.encode_size(), data.len());
        assert!(data.len() <= BatchBlock::max_encode_size(&LIMITS));
        assert_eq!(block.ids().len(), block.commands.len());
    }
});
