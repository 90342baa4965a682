//! The scheme as a whole: what opens, and what must not.

use proptest::prelude::*;

use super::*;
use crate::keys::KeyShare;
use crate::testing::SeededRng;

const LABEL: &[u8] = b"a label";

struct Committee {
    params: PublicParams,
    keys: Vec<KeyShare>,
    rng: SeededRng,
}

impl Committee {
    fn new(t: u8, n: u8, seed: &str) -> Self {
        let mut rng = SeededRng::new(seed);
        let (params, keys) = deal(t, n, &mut rng).unwrap();
        Self { params, keys, rng }
    }

    fn encrypt(&mut self, payload: &[u8]) -> VerifiedCiphertext {
        let bytes = encrypt(&self.params, LABEL, payload, &mut self.rng).to_bytes().to_vec();
        Ciphertext::from_bytes(&bytes).unwrap().verify(&self.params, LABEL).unwrap()
    }

    fn share(&mut self, member: u8, ct: &VerifiedCiphertext) -> DecryptionShare {
        let share = decrypt_share(&self.params, &self.keys[usize::from(member) - 1], ct, &mut self.rng).unwrap();
        DecryptionShare::from_bytes(&share.to_bytes()).unwrap()
    }

    fn shares(&mut self, members: &[u8], ct: &VerifiedCiphertext) -> Vec<VerifiedShare> {
        members.iter().map(|m| self.share(*m, ct).verify(&self.params, ct).unwrap()).collect()
    }
}

#[test]
fn golden_vector() {
    let mut committee = Committee::new(2, 3, "coalition-shuffle/tdh2");
    let ct = committee.encrypt(b"open me");
    let mut lines = vec![committee.params.to_hex(), hex::encode(ct.ciphertext().to_bytes())];
    lines.extend([1, 2, 3].map(|m| hex::encode(committee.share(m, &ct).to_bytes())));
    let expected: Vec<&str> = include_str!("../../tests/vectors/tdh2.txt").lines().collect();
    assert_eq!(lines, expected);
}

#[test]
fn the_golden_vector_opens_from_its_bytes_alone() {
    let lines: Vec<&str> = include_str!("../../tests/vectors/tdh2.txt").lines().collect();
    let params = PublicParams::from_hex(lines[0]).unwrap();
    let ct = Ciphertext::from_bytes(&hex::decode(lines[1]).unwrap()).unwrap().verify(&params, LABEL).unwrap();
    let share =
        |line: &str| DecryptionShare::from_bytes(&hex::decode(line).unwrap()).unwrap().verify(&params, &ct).unwrap();
    let opened = combine(&params, &ct, &[share(lines[4]), share(lines[2])]).unwrap();
    assert_eq!(opened.as_slice(), b"open me");
}

#[test]
fn thresholds_outside_their_range_are_refused() {
    let mut rng = SeededRng::new("threshold");
    for (t, n) in [(0, 0), (0, 3), (4, 3), (1, 65), (255, 255)] {
        assert_eq!(deal(t, n, &mut rng).unwrap_err(), Tdh2Error::Threshold { t, n });
    }
    for (t, n) in [(1, 1), (1, 4), (64, 64)] {
        let (params, keys) = deal(t, n, &mut rng).unwrap();
        assert_eq!((params.t(), params.n(), keys.len()), (t, n, usize::from(n)));
        assert_eq!(PublicParams::from_bytes(params.to_bytes()).unwrap(), params);
    }
}

#[test]
fn wrong_label_and_wrong_committee_are_refused() {
    let mut ours = Committee::new(2, 3, "ours");
    let theirs = Committee::new(2, 3, "theirs");
    let ct = ours.encrypt(b"payload");
    let again = || ct.ciphertext().clone();
    assert_eq!(again().verify(&ours.params, b"another label"), Err(Tdh2Error::BadCiphertext));
    assert_eq!(again().verify(&theirs.params, LABEL), Err(Tdh2Error::BadCiphertext));
    let share = ours.share(1, &ct);
    assert_eq!(share.verify(&theirs.params, &ct), Err(Tdh2Error::BadCiphertext));
    let foreign_key = decrypt_share(&ours.params, &theirs.keys[0], &ct, &mut ours.rng);
    assert!(matches!(foreign_key, Err(Tdh2Error::WrongKeyShare(_))));
}

#[test]
fn too_few_duplicate_and_foreign_shares_are_refused() {
    let mut committee = Committee::new(3, 5, "few");
    let ct = committee.encrypt(b"payload");
    let shares = committee.shares(&[1, 4], &ct);
    let params = committee.params.clone();
    assert_eq!(combine(&params, &ct, &shares), Err(Tdh2Error::TooFewShares { have: 2, need: 3 }));
    let twice = [shares.clone(), vec![shares[1].clone()]].concat();
    assert_eq!(combine(&params, &ct, &twice), Err(Tdh2Error::DuplicateShare { index: 4 }));
    let other = committee.encrypt(b"payload");
    let foreign = [shares, committee.shares(&[2], &other)].concat();
    assert_eq!(combine(&params, &ct, &foreign), Err(Tdh2Error::ForeignShare { index: 2 }));
}

#[test]
fn forged_shares_name_their_culprit() {
    let mut committee = Committee::new(2, 3, "forged");
    let ct = committee.encrypt(b"payload");
    let other = committee.encrypt(b"other");
    let honest = committee.share(2, &ct).to_bytes();
    let mut posing = honest;
    posing[0] = 3;
    let mut mixed = honest;
    mixed[1..33].copy_from_slice(&committee.share(1, &ct).to_bytes()[1..33]);
    let replayed = committee.share(2, &other).to_bytes();
    for (bytes, index) in [(posing, 3), (mixed, 2), (replayed, 2)] {
        let share = DecryptionShare::from_bytes(&bytes).unwrap();
        assert_eq!(share.verify(&committee.params, &ct), Err(Tdh2Error::ForgedShare { index }));
    }
    for index in [0, 4, 255] {
        let mut bytes = honest;
        bytes[0] = index;
        let share = DecryptionShare::from_bytes(&bytes).unwrap();
        assert_eq!(share.verify(&committee.params, &ct), Err(Tdh2Error::NoSuchMember { index, n: 3 }));
    }
}

#[test]
fn a_wrong_key_share_makes_shares_that_are_forged() {
    let mut committee = Committee::new(2, 3, "wrong key");
    let ct = committee.encrypt(b"payload");
    let wrong = KeyShare::new(1, committee.params.fingerprint(), committee.keys[1].secret());
    let share = decrypt_share(&committee.params, &wrong, &ct, &mut committee.rng).unwrap();
    assert_eq!(share.verify(&committee.params, &ct), Err(Tdh2Error::ForgedShare { index: 1 }));
}

/// `u` and `ū` with different exponents: the malleable ciphertext that the proof exists to stop.
#[test]
fn a_ciphertext_without_a_valid_proof_of_equal_exponents_is_refused() {
    let mut committee = Committee::new(2, 3, "exponents");
    let a = committee.encrypt(b"payload").ciphertext().to_bytes().to_vec();
    let b = committee.encrypt(b"payload").ciphertext().to_bytes().to_vec();
    for range in [0..32, 32..64, 64..96, 96..128, 128..a.len()] {
        let mut spliced = a.clone();
        spliced[range.clone()].copy_from_slice(&b[range]);
        let spliced = Ciphertext::from_bytes(&spliced).unwrap();
        assert_eq!(spliced.verify(&committee.params, LABEL), Err(Tdh2Error::BadCiphertext));
    }
}

#[test]
fn inconsistent_parameters_are_refused() {
    let committee = Committee::new(2, 4, "inconsistent");
    let bytes = committee.params.to_bytes();
    let swapped = |a: usize, b: usize| {
        let mut bytes = bytes.to_vec();
        for i in 0..32 {
            bytes.swap(4 + 32 * a + i, 4 + 32 * b + i);
        }
        PublicParams::from_bytes(&bytes)
    };
    for (a, b) in [(0, 1), (1, 2), (3, 4), (0, 4)] {
        assert_eq!(swapped(a, b), Err(Tdh2Error::Inconsistent { t: 2 }));
    }
    let mut lower = bytes.to_vec();
    lower[2] = 1;
    assert_eq!(PublicParams::from_bytes(&lower), Err(Tdh2Error::Inconsistent { t: 1 }));
    // A higher stated threshold fits the same points, but is another committee with another fingerprint.
    let mut higher = bytes.to_vec();
    higher[2] = 3;
    let higher = PublicParams::from_bytes(&higher).unwrap();
    assert_ne!(higher.fingerprint(), committee.params.fingerprint());
}

#[test]
fn damaged_parameters_are_refused_and_named() {
    let bytes = Committee::new(2, 3, "damaged").params.to_bytes().to_vec();
    let with = |at: usize, to: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = to;
        PublicParams::from_bytes(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, 2), Tdh2Error::Version { found: 2, .. }));
    assert_eq!(with(1, 0), Tdh2Error::UnknownSetup(0));
    assert_eq!(with(2, 0), Tdh2Error::Threshold { t: 0, n: 3 });
    assert!(matches!(with(3, 4), Tdh2Error::Length { .. }));
    let mut neutral = bytes.clone();
    neutral[4..36].fill(0);
    assert_eq!(PublicParams::from_bytes(&neutral), Err(Tdh2Error::Point("group key")));
    assert!(matches!(PublicParams::from_bytes(&[]), Err(Tdh2Error::Length { .. })));
    assert!(PublicParams::from_hex("no hex").is_err());
}

#[test]
fn the_dealer_shows_in_the_parameters() {
    let params = Committee::new(2, 3, "setup").params;
    assert_eq!((params.setup(), params.to_bytes()[1]), (Setup::TrustedDealer, 1));
    assert!(params.setup().to_string().contains("dealer"));
}

#[test]
fn a_payload_that_never_was_encrypted_is_unreadable_for_every_subset() {
    let mut committee = Committee::new(2, 3, "unreadable");
    // Made by the rules, except that the payload is sealed under another key.
    let r = Scalar::from(5u8);
    let (u, u_bar) = (RistrettoPoint::mul_base(&r), r * committee.params.second_generator());
    let sealed = [7; 40];
    let s = Scalar::from(9u8);
    let (w, w_bar) = (RistrettoPoint::mul_base(&s), s * committee.params.second_generator());
    let points = [u, u_bar, w, w_bar].map(|p| p.compress().to_bytes());
    let fingerprint = committee.params.fingerprint();
    let parts: [&[u8]; 7] = [fingerprint.as_bytes(), LABEL, &points[0], &points[1], &points[2], &points[3], &sealed];
    let e = hash::scalar(hash::Use::CiphertextProof, &parts);
    let f = s + r * e;
    let bytes = [&points[0], &points[1], e.as_bytes(), f.as_bytes(), sealed.as_slice()].concat();
    let ct = Ciphertext::from_bytes(&bytes).unwrap().verify(&committee.params, LABEL).unwrap();
    for members in [[1, 2], [1, 3], [3, 2]] {
        let shares = committee.shares(&members, &ct);
        assert_eq!(combine(&committee.params, &ct, &shares), Err(Tdh2Error::Unreadable));
    }
}

#[test]
fn a_repeating_random_source_does_not_repeat_a_proof_nonce() {
    let mut committee = Committee::new(2, 3, "repeat");
    let (a, b) = (committee.encrypt(b"a"), committee.encrypt(b"b"));
    let key = committee.keys[0].clone();
    let proof = |ct| {
        let share = decrypt_share(&committee.params, &key, ct, &mut SeededRng::new("stuck")).unwrap().to_bytes();
        (parse_scalar(&share[33..65], "e").unwrap(), parse_scalar(&share[65..], "f").unwrap())
    };
    let ((e1, f1), (e2, f2)) = (proof(&a), proof(&b));
    // With one nonce for both, (f1 - f2) / (e1 - e2) would be the secret.
    let leaked = (f1 - f2) * (e1 - e2).invert();
    assert_ne!(&leaked, key.secret());
}

/// A committee, a payload, and a random order of its members.
fn committees() -> impl Strategy<Value = (u8, u8, Vec<u8>, Vec<u8>)> {
    (1u8..=7).prop_flat_map(|n| (1..=n, Just(n))).prop_flat_map(|(t, n)| {
        let order = Just((1..=n).collect::<Vec<u8>>()).prop_shuffle();
        (Just(t), Just(n), order, proptest::collection::vec(any::<u8>(), 0..300))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_t_members_open_and_fewer_do_not((t, n, order, payload) in committees()) {
        let mut committee = Committee::new(t, n, "subset");
        let ct = committee.encrypt(&payload);
        prop_assert_eq!(ct.ciphertext().to_bytes().len(), payload.len() + CIPHERTEXT_OVERHEAD);
        let shares = committee.shares(&order, &ct);
        let t = usize::from(t);
        for have in 0..=order.len() {
            let opened = combine(&committee.params, &ct, &shares[..have]).map(|opened| opened.to_vec());
            let expected =
                if have >= t { Ok(payload.clone()) } else { Err(Tdh2Error::TooFewShares { have, need: committee.params.t() }) };
            prop_assert_eq!(opened, expected);
        }
    }

    /// Without the count check too: interpolating t-1 shares as if they were enough gives another key.
    #[test]
    fn fewer_shares_interpolate_to_another_key((t, n, order, payload) in committees()) {
        prop_assume!(t > 1);
        let mut committee = Committee::new(t, n, "fewer");
        let ct = committee.encrypt(&payload);
        let mut claimed = committee.params.to_bytes().to_vec();
        claimed[2] = t - 1;
        prop_assert!(PublicParams::from_bytes(&claimed).is_err());
        let few = &order[..usize::from(t) - 1];
        let shares = committee.shares(few, &ct);
        let factors = lagrange(few, 0);
        let guess: RistrettoPoint = shares.iter().zip(&factors).map(|(share, factor)| share.point() * factor).sum();
        let all: Vec<u8> = order[..usize::from(t)].to_vec();
        let enough = committee.shares(&all, &ct);
        let right: RistrettoPoint = enough.iter().zip(lagrange(&all, 0)).map(|(s, factor)| s.point() * factor).sum();
        prop_assert_ne!(guess, right);
    }

    #[test]
    fn any_flipped_bit_of_a_ciphertext_is_refused(bit in 0usize..8 * (CIPHERTEXT_OVERHEAD + 24)) {
        let mut committee = Committee::new(2, 3, "ct flip");
        let mut bytes = committee.encrypt(&[3; 24]).ciphertext().to_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let verified = Ciphertext::from_bytes(&bytes).and_then(|ct| ct.verify(&committee.params, LABEL));
        prop_assert!(verified.is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_share_is_refused(bit in 0usize..8 * SHARE_BYTES) {
        let mut committee = Committee::new(2, 3, "share flip");
        let ct = committee.encrypt(b"payload");
        let mut bytes = committee.share(2, &ct).to_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(DecryptionShare::from_bytes(&bytes).and_then(|share| share.verify(&committee.params, &ct)).is_err());
    }

    #[test]
    fn any_flipped_bit_of_the_parameters_is_refused_or_names_another_committee(bit in 0usize..8 * (4 + 4 * 32)) {
        let committee = Committee::new(2, 3, "params flip");
        let mut bytes = committee.params.to_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(params) = PublicParams::from_bytes(&bytes) {
            prop_assert_ne!(params.fingerprint(), committee.params.fingerprint());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let committee = Committee::new(2, 3, "arbitrary");
        let _ = PublicParams::from_bytes(&bytes);
        let _ = DecryptionShare::from_bytes(&bytes);
        if let Ok(ct) = Ciphertext::from_bytes(&bytes) {
            prop_assert!(ct.verify(&committee.params, LABEL).is_err());
        }
    }

    /// Well-formed points and scalars that mean nothing together: past the parser, never past the proof.
    #[test]
    fn arbitrary_well_formed_ciphertexts_and_shares_are_refused(seed in any::<u64>()) {
        let mut committee = Committee::new(2, 3, "well formed");
        let ct = committee.encrypt(b"payload");
        let mut rng = SeededRng::new(&seed.to_string());
        let mut parts = || {
            let point = RistrettoPoint::random(&mut rng).compress().to_bytes();
            let other = RistrettoPoint::random(&mut rng).compress().to_bytes();
            (point, other, Scalar::random(&mut rng).to_bytes(), Scalar::random(&mut rng).to_bytes())
        };
        let (u, u_bar, e, f) = parts();
        let made = Ciphertext::from_bytes(&[&u, &u_bar, &e, &f, [1; 40].as_slice()].concat()).unwrap();
        prop_assert_eq!(made.verify(&committee.params, LABEL), Err(Tdh2Error::BadCiphertext));
        let (point, _, e, f) = parts();
        let share = DecryptionShare::from_bytes(&[[2].as_slice(), &point, &e, &f].concat()).unwrap();
        prop_assert_eq!(share.verify(&committee.params, &ct), Err(Tdh2Error::ForgedShare { index: 2 }));
    }
}
