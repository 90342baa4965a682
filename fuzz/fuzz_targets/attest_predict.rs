#![no_main]
//! Firmware, kernels and event logs of strangers: read or refused, never more work than their size allows. The first byte says which
//! is read; it may damage a sound firmware.

use std::sync::LazyLock;

use coalition_attest::predict::{DirectBoot, EventLog, Firmware, KernelImage, PageOrder};
use coalition_fuzz::damaged;
use libfuzzer_sys::fuzz_target;

/// One measured page, and a table that names it.
static FIRMWARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![7; 4_096];
    bytes.extend(b"TDVF");
    bytes.extend([48_u32, 1, 1].map(u32::to_le_bytes).concat());
    bytes.extend([0_u32, 4_096, 0xffff_f000, 0, 4_096, 0, 0, 1].map(u32::to_le_bytes).concat());
    bytes.extend(120_u32.to_le_bytes());
    let entry = |length: u16, guid: [u8; 16]| [&length.to_le_bytes()[..], &guid].concat();
    let metadata = [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
    let table = [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
    bytes.extend(entry(22, metadata));
    bytes.extend(entry(40, table));
    bytes.extend([0; 32]);
    bytes
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    match which % 4 {
        0 => {
            if let Ok(log) = EventLog::parse(rest) {
                assert_eq!(log.explains(&log.replay()), Ok(()));
            }
        }
        1 => {
            let firmware = damaged(&FIRMWARE, rest);
            match Firmware::parse(&firmware) {
                Ok(firmware) if firmware.sections().iter().map(|section| section.bytes).sum::<u64>() < 1 << 20 => {
                    assert_ne!(firmware.mrtd(PageOrder::PageByPage).0, [0; 48]);
                }
                Ok(_) => {}
                Err(_) => assert_ne!(firmware, *FIRMWARE),
            }
        }
        2 => drop(Firmware::parse(rest)),
        _ => {
            for image in [KernelImage::Untouched, KernelImage::Loaded { ram_mib: 4_096 }] {
                let boot = DirectBoot { kernel: rest, image, initrd: b"initial", command_line: "" };
                let _ = boot.rtmr1();
            }
        }
    }
});
