//! Answers are outside bytes: whatever they are, they are read or refused.
#![allow(missing_docs, clippy::unwrap_used)]

use coalition_aws::xml::{MAX_DEPTH, XmlError, parse};
use coalition_aws::{InstanceId, kind_of, read_anything};
use proptest::prelude::*;

#[test]
fn what_no_answer_has_is_refused() {
    let deep = |levels: usize| format!("{}{}", "<a>".repeat(levels), "</a>".repeat(levels));
    assert!(parse(deep(MAX_DEPTH).as_bytes()).is_ok());
    assert!(matches!(parse(deep(MAX_DEPTH + 1).as_bytes()), Err(XmlError::TooMuch { what: "levels", .. })));
    let many = format!("<a>{}</a>", "<b/>".repeat(400_000));
    assert!(matches!(parse(many.as_bytes()), Err(XmlError::TooMuch { what: "elements", .. })));
    assert!(matches!(parse(&vec![b' '; (16 << 20) + 1]), Err(XmlError::TooLong { .. })));
    let bomb = "<!DOCTYPE a [<!ENTITY x \"xxxx\">]><a>&x;</a>";
    assert!(matches!(parse(bomb.as_bytes()), Err(XmlError::Forbidden { what: "a document type" })));
    assert!(matches!(parse(b"<a>&x;</a>"), Err(XmlError::Forbidden { .. })));
    for wrong in ["", "text", "<a>", "</a>", "<a></b>", "<a/><b/>", "<a/>text", "<a>&#0;</a>", "<a>&#xffffffff;</a>"] {
        assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
    assert!(parse(b"<a>\xff</a>").is_err());
    let one = parse(
        "\u{feff}<?xml version='1.0'?><p:a x='y'><!-- c --><b>1 &lt;&#x32; <![CDATA[<3]]></b></p:a>\n".as_bytes(),
    );
    let one = one.unwrap();
    assert_eq!((one.name.as_str(), one.text_at(&["b"])), ("a", Some("1 <2 <3")));
}

#[test]
fn ids_are_ids() {
    for wrong in ["", "i-", "i-123", "i-0123456789abcdefff", "i-0123456G", "vol-01234567", "i-01234567 ", "i-0123456&"]
    {
        assert!(wrong.parse::<InstanceId>().is_err(), "{wrong}");
    }
    assert_eq!("i-01234567".parse::<InstanceId>().unwrap().to_string(), "i-01234567");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read_anything(&bytes);
    }

    #[test]
    fn no_tags_panic(
        parts in proptest::collection::vec(
            prop_oneof![
                "</?(reservationSet|item|instancesSet|instanceId|instanceState|name|tagSet|output|nextToken|R)>",
                "[a-z0-9&;# -]{0,12}",
            ],
            0..60,
        ),
    ) {
        read_anything(parts.concat().as_bytes());
    }

    #[test]
    fn every_code_has_a_kind(code in "\\PC{0,60}", status in any::<u16>()) {
        let _ = kind_of(&code, status);
    }
}
