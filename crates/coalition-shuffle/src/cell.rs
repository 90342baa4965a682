//! Cells: what the shuffle carries, all of one size, so that their length says nothing.

use std::fmt;

use coalition::{RequestId, UniqueId};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::envelope::{Envelope, EnvelopeError};
use crate::seal::{self, Purpose, ReceiverKey, ReceiverPublic, SealContext, SealError};
use crate::tdh2::{self, CIPHERTEXT_OVERHEAD, Ciphertext, PublicParams, Tdh2Error, VerifiedCiphertext, VerifiedShare};

/// Size of every cell, in both directions.
pub const CELL_BYTES: usize = 4_096;

/// Version byte that leads every cell.
pub const CELL_VERSION: u8 = 1;

const REQUEST_HEADER: usize = 1 + 32;
const LENGTH_BYTES: usize = 2;
const REQUEST_PADDED: usize = CELL_BYTES - REQUEST_HEADER - CIPHERTEXT_OVERHEAD;
const REPLY_PADDED: usize = CELL_BYTES - 1 - seal::OVERHEAD;
const LABEL_DOMAIN: &[u8; 28] = b"coalition/shuffle/request/v1";

/// Longest encoded envelope a request cell carries, in bytes.
pub const ENVELOPE_ROOM: usize = REQUEST_PADDED - LENGTH_BYTES;

/// Longest payload a reply cell carries, in bytes.
pub const REPLY_ROOM: usize = REPLY_PADDED - LENGTH_BYTES;

/// Name of a request cell: blake3 of its bytes. The request on the market carries it as its `bearer_pointer`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellId(pub UniqueId);

impl CellId {
    fn of(bytes: &[u8]) -> Self {
        Self(UniqueId::hash(bytes))
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CellId({})", self.0)
    }
}

/// The market a cell belongs to; a cell of one scope is worthless in every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellScope {
    /// Stable id of the coalition.
    pub coalition: UniqueId,
    /// Id of its Compute organism.
    pub compute: UniqueId,
}

impl CellScope {
    /// The label a request's ciphertext is bound to:
    /// `"coalition/shuffle/request/v1" ‖ coalition (32) ‖ compute organism (32) ‖ request (32)`.
    ///
    /// A request's id is a hash of a key made for it and a nonce, so the label is fresh for every request, and a cell
    /// named by somebody else's request opens for nobody.
    fn label(&self, request: RequestId) -> [u8; 124] {
        let mut label = [0; 124];
        label[..28].copy_from_slice(LABEL_DOMAIN);
        label[28..60].copy_from_slice(self.coalition.as_bytes());
        label[60..92].copy_from_slice(self.compute.as_bytes());
        label[92..].copy_from_slice(request.as_bytes());
        label
    }

    /// What a receipt for `grant` is bound to.
    #[must_use]
    pub const fn seal_context(&self, grant: RequestId) -> SealContext {
        SealContext { coalition: self.coalition, grant }
    }
}

/// Why a cell was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CellError {
    /// Not the one size every cell has.
    #[error("a cell has {CELL_BYTES} bytes, this has {found}")]
    Size {
        /// Bytes found.
        found: usize,
    },
    /// Another version.
    #[error("the cell has version {found}, this software reads version {CELL_VERSION}; update it")]
    Version {
        /// Version found.
        found: u8,
    },
    /// The length or the zeros behind the content are wrong: not made by this format.
    #[error("the cell's padding is wrong")]
    Padding,
    /// A payload longer than a reply cell carries.
    #[error("the reply has {found} bytes, a cell carries {REPLY_ROOM}")]
    DoesNotFit {
        /// Bytes found.
        found: usize,
    },
    /// The threshold ciphertext or a share was refused.
    #[error("the cell's threshold encryption was refused")]
    Threshold(#[from] Tdh2Error),
    /// The envelope inside was refused.
    #[error("the cell's envelope was refused")]
    Envelope(#[from] EnvelopeError),
    /// The sealing was refused.
    #[error("the cell's seal was refused")]
    Seal(#[from] SealError),
}

/// A request cell of the right size and form whose proof has not been checked:
/// `0x01 ‖ request (32) ‖ TDH2 ciphertext (4,063)`.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestCell {
    bytes: Vec<u8>,
    request: RequestId,
    ciphertext: Ciphertext,
}

/// A request cell whose proof holds for one scope and committee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCell {
    id: CellId,
    request: RequestId,
    ciphertext: VerifiedCiphertext,
}

impl RequestCell {
    /// Parses bytes from outside.
    ///
    /// # Errors
    /// [`CellError`] for another size or version or a malformed ciphertext.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CellError> {
        check_form(bytes)?;
        let mut request = [0; 32];
        request.copy_from_slice(&bytes[1..REQUEST_HEADER]);
        let ciphertext = Ciphertext::from_bytes(&bytes[REQUEST_HEADER..])?;
        Ok(Self { bytes: bytes.to_vec(), request: RequestId::from_bytes(request), ciphertext })
    }

    /// The bytes that travel, [`CELL_BYTES`] of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The cell's name.
    #[must_use]
    pub fn id(&self) -> CellId {
        CellId::of(&self.bytes)
    }

    /// The request it says it belongs to; true once verified.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// Checks that the cell was made for its request in this scope and for this committee.
    ///
    /// # Errors
    /// [`CellError::Threshold`] otherwise.
    pub fn verify(&self, params: &PublicParams, scope: &CellScope) -> Result<VerifiedCell, CellError> {
        let ciphertext = self.ciphertext.clone().verify(params, &scope.label(self.request))?;
        Ok(VerifiedCell { id: self.id(), request: self.request, ciphertext })
    }
}

impl fmt::Debug for RequestCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestCell({})", self.id())
    }
}

impl VerifiedCell {
    /// The cell's name.
    #[must_use]
    pub const fn id(&self) -> CellId {
        self.id
    }

    /// The request the cell was made for.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// The ciphertext inside.
    #[must_use]
    pub const fn ciphertext(&self) -> &VerifiedCiphertext {
        &self.ciphertext
    }

    /// Opens the cell with checked shares of `t` members.
    ///
    /// # Errors
    /// [`CellError::Threshold`] for shares that do not suffice; [`CellError::Padding`] and [`CellError::Envelope`] when
    /// the requester put nonsense inside, which every `t` members find alike.
    pub fn open(&self, params: &PublicParams, shares: &[VerifiedShare]) -> Result<Envelope, CellError> {
        let padded = tdh2::combine(params, &self.ciphertext, shares)?;
        Ok(Envelope::decode(unpad(&padded)?)?)
    }
}

/// A request cell as its maker holds it.
#[derive(Debug, Clone)]
pub struct SealedRequest {
    /// What is submitted to the committee.
    pub cell: RequestCell,
    /// Its name, for the request's `bearer_pointer`.
    pub id: CellId,
}

impl SealedRequest {
    /// Encrypts `envelope` to the committee, bound to scope and request.
    ///
    /// # Errors
    /// [`CellError::Envelope`] when the envelope breaks a limit or does not fit.
    pub fn build<R: CryptoRngCore + ?Sized>(
        envelope: &Envelope,
        params: &PublicParams,
        scope: &CellScope,
        request: RequestId,
        rng: &mut R,
    ) -> Result<Self, CellError> {
        let encoded = envelope.encode(ENVELOPE_ROOM)?;
        let padded = pad(&encoded, REQUEST_PADDED);
        let ciphertext = tdh2::encrypt(params, &scope.label(request), &padded, rng);
        let mut bytes = Vec::with_capacity(CELL_BYTES);
        bytes.push(CELL_VERSION);
        bytes.extend_from_slice(request.as_bytes());
        bytes.extend_from_slice(ciphertext.to_bytes());
        let cell = RequestCell { bytes, request, ciphertext };
        Ok(Self { id: cell.id(), cell })
    }
}

/// A reply cell: `0x01 ‖ sealed payload (4,095)`. Only the holder of the requester's key sees inside.
#[derive(Clone, PartialEq, Eq)]
pub struct ReplyCell(Vec<u8>);

impl ReplyCell {
    /// Parses bytes from outside.
    ///
    /// # Errors
    /// [`CellError`] for another size or version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CellError> {
        check_form(bytes)?;
        Ok(Self(bytes.to_vec()))
    }

    /// The bytes that travel, [`CELL_BYTES`] of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Name of the reply: blake3 of its bytes.
    #[must_use]
    pub fn id(&self) -> UniqueId {
        UniqueId::hash(&self.0)
    }

    /// Seals `payload`, padded, to the requester's key.
    ///
    /// # Errors
    /// [`CellError::DoesNotFit`]; [`CellError::Seal`], excluded for a validated key.
    pub fn seal<R: CryptoRngCore + ?Sized>(
        payload: &[u8],
        purpose: Purpose,
        to: &ReceiverPublic,
        context: &SealContext,
        rng: &mut R,
    ) -> Result<Self, CellError> {
        if payload.len() > REPLY_ROOM {
            return Err(CellError::DoesNotFit { found: payload.len() });
        }
        let sealed = seal::seal(to, purpose, context, &pad(payload, REPLY_PADDED), rng)?;
        let mut bytes = Vec::with_capacity(CELL_BYTES);
        bytes.push(CELL_VERSION);
        bytes.extend_from_slice(&sealed);
        Ok(Self(bytes))
    }

    /// Opens the cell with the requester's key; the payload without its padding.
    ///
    /// # Errors
    /// [`CellError::Seal`] when it is for somebody or something else; [`CellError::Padding`].
    pub fn open(
        &self,
        key: &ReceiverKey,
        purpose: Purpose,
        context: &SealContext,
    ) -> Result<Zeroizing<Vec<u8>>, CellError> {
        let padded = seal::open(key, purpose, context, &self.0[1..])?;
        Ok(Zeroizing::new(unpad(&padded)?.to_vec()))
    }
}

impl fmt::Debug for ReplyCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyCell({})", self.id())
    }
}

fn check_form(bytes: &[u8]) -> Result<(), CellError> {
    if bytes.len() != CELL_BYTES {
        return Err(CellError::Size { found: bytes.len() });
    }
    if bytes[0] != CELL_VERSION {
        return Err(CellError::Version { found: bytes[0] });
    }
    Ok(())
}

/// `length (2, big endian) ‖ content ‖ zeros` of `size` bytes. The caller has checked that the content fits.
fn pad(content: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let length = u16::try_from(content.len()).expect("content of a cell is shorter than the cell");
    let mut padded = Zeroizing::new(vec![0; size]);
    padded[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    padded[LENGTH_BYTES..LENGTH_BYTES + content.len()].copy_from_slice(content);
    padded
}

fn unpad(padded: &[u8]) -> Result<&[u8], CellError> {
    let (length, rest) = padded.split_first_chunk::<LENGTH_BYTES>().ok_or(CellError::Padding)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (content, zeros) = rest.split_at_checked(length).ok_or(CellError::Padding)?;
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(CellError::Padding);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::tests::sample;
    use crate::keys::DealerOutput;
    use crate::tdh2::decrypt_share;
    use crate::testing::SeededRng;
    use proptest::prelude::*;

    fn scope() -> CellScope {
        CellScope { coalition: UniqueId::from_u8(1), compute: UniqueId::from_u8(2) }
    }

    fn request() -> RequestId {
        RequestId(UniqueId::from_u8(3))
    }

    fn setup(seed: &str) -> (DealerOutput, SealedRequest, SeededRng) {
        let mut rng = SeededRng::new(seed);
        let dealt = DealerOutput::deal(2, 3, &mut rng).unwrap();
        let sealed = SealedRequest::build(&sample(), &dealt.params, &scope(), request(), &mut rng).unwrap();
        (dealt, sealed, rng)
    }

    fn open(dealt: &DealerOutput, cell: &VerifiedCell, rng: &mut SeededRng) -> Result<Envelope, CellError> {
        let share = |i: usize, rng: &mut SeededRng| {
            let share = decrypt_share(&dealt.params, &dealt.shares[i], cell.ciphertext(), rng).unwrap();
            share.verify(&dealt.params, cell.ciphertext()).unwrap()
        };
        cell.open(&dealt.params, &[share(2, rng), share(0, rng)])
    }

    #[test]
    fn a_cell_opens_to_its_envelope() {
        let (dealt, sealed, mut rng) = setup("open");
        assert_eq!(sealed.cell.as_bytes().len(), CELL_BYTES);
        let parsed = RequestCell::from_bytes(sealed.cell.as_bytes()).unwrap();
        assert_eq!((parsed.id(), parsed.request()), (sealed.id, request()));
        let verified = parsed.verify(&dealt.params, &scope()).unwrap();
        assert_eq!(open(&dealt, &verified, &mut rng).unwrap(), sample());
    }

    #[test]
    fn golden_vector() {
        let (_, sealed, _) = setup("coalition-shuffle/cell");
        let expected = include_str!("../tests/vectors/cell.txt").trim();
        let header = hex::encode(&sealed.cell.as_bytes()[..REQUEST_HEADER + 128]);
        assert_eq!(format!("{header}\n{}", sealed.id), expected);
    }

    #[test]
    fn a_cell_of_another_scope_request_or_committee_is_refused() {
        let (dealt, sealed, mut rng) = setup("scope");
        let refused = Err(CellError::Threshold(Tdh2Error::BadCiphertext));
        let coalition = CellScope { coalition: UniqueId::from_u8(9), ..scope() };
        let compute = CellScope { compute: UniqueId::from_u8(9), ..scope() };
        assert_eq!(sealed.cell.verify(&dealt.params, &coalition), refused);
        assert_eq!(sealed.cell.verify(&dealt.params, &compute), refused);
        let mut stolen = sealed.cell.as_bytes().to_vec();
        stolen[1..33].copy_from_slice(&[7; 32]);
        assert_eq!(RequestCell::from_bytes(&stolen).unwrap().verify(&dealt.params, &scope()), refused);
        let others = DealerOutput::deal(2, 3, &mut rng).unwrap();
        assert_eq!(sealed.cell.verify(&others.params, &scope()), refused);
    }

    #[test]
    fn nonsense_inside_a_valid_cell_is_refused_after_opening() {
        let (dealt, _, mut rng) = setup("nonsense");
        let mut padded = pad(&sample().encode(ENVELOPE_ROOM).unwrap(), REQUEST_PADDED);
        *padded.last_mut().unwrap() = 1;
        let mut long = vec![0xff; REQUEST_PADDED];
        long[2] = 0;
        for (content, padding) in [(padded.to_vec(), true), (long, true), (vec![0; REQUEST_PADDED], false)] {
            let ciphertext = tdh2::encrypt(&dealt.params, &scope().label(request()), &content, &mut rng);
            let bytes = [&[CELL_VERSION], request().as_bytes().as_slice(), ciphertext.to_bytes()].concat();
            let cell = RequestCell::from_bytes(&bytes).unwrap().verify(&dealt.params, &scope()).unwrap();
            let error = open(&dealt, &cell, &mut rng).unwrap_err();
            assert_eq!(error == CellError::Padding, padding, "{error}");
        }
    }

    #[test]
    fn reply_cells_fit_exactly_and_hide_their_length() {
        let mut rng = SeededRng::new("reply");
        let key = ReceiverKey::generate(&mut rng);
        let context = scope().seal_context(request());
        for size in [0, 1, REPLY_ROOM] {
            let payload = vec![8; size];
            let cell = ReplyCell::seal(&payload, Purpose::SshReceipt, &key.public(), &context, &mut rng).unwrap();
            assert_eq!(cell.as_bytes().len(), CELL_BYTES);
            let cell = ReplyCell::from_bytes(cell.as_bytes()).unwrap();
            assert_eq!(cell.open(&key, Purpose::SshReceipt, &context).unwrap().as_slice(), payload);
            let other = scope().seal_context(RequestId(UniqueId::from_u8(4)));
            assert_eq!(cell.open(&key, Purpose::SshReceipt, &other), Err(CellError::Seal(SealError::NotOpened)));
        }
        let long = vec![8; REPLY_ROOM + 1];
        let refused = ReplyCell::seal(&long, Purpose::SshReceipt, &key.public(), &context, &mut rng);
        assert_eq!(refused, Err(CellError::DoesNotFit { found: REPLY_ROOM + 1 }));
    }

    #[test]
    fn sizes_and_versions_are_checked() {
        for size in [0, 1, CELL_BYTES - 1, CELL_BYTES + 1] {
            assert_eq!(RequestCell::from_bytes(&vec![1; size]), Err(CellError::Size { found: size }));
            assert_eq!(ReplyCell::from_bytes(&vec![1; size]), Err(CellError::Size { found: size }));
        }
        assert_eq!(RequestCell::from_bytes(&[2; CELL_BYTES]), Err(CellError::Version { found: 2 }));
        assert_eq!(ReplyCell::from_bytes(&[0; CELL_BYTES]), Err(CellError::Version { found: 0 }));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_cell_is_refused(bit in 0usize..8 * CELL_BYTES, low in any::<bool>()) {
            // Half of the cases go to the first bytes, where the structure is.
            let bit = if low { bit % (8 * 170) } else { bit };
            let (dealt, sealed, _) = setup("flip");
            let mut bytes = sealed.cell.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(cell) = RequestCell::from_bytes(&bytes) {
                prop_assert!(cell.id() != sealed.id);
                prop_assert!(cell.verify(&dealt.params, &scope()).is_err());
            }
        }

        #[test]
        fn arbitrary_cells_never_panic(seed in any::<u64>()) {
            use rand_core::RngCore;
            let mut bytes = vec![0; CELL_BYTES];
            SeededRng::new(&seed.to_string()).fill_bytes(&mut bytes);
            bytes[0] = CELL_VERSION;
            prop_assert!(RequestCell::from_bytes(&bytes).is_err());
            let reply = ReplyCell::from_bytes(&bytes).unwrap();
            let context = scope().seal_context(request());
            prop_assert!(reply.open(&ReceiverKey::from_bytes(&[1; 32]), Purpose::SshReceipt, &context).is_err());
        }

        #[test]
        fn arbitrary_padding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(content) = unpad(&bytes) {
                let again = pad(content, bytes.len());
                prop_assert_eq!(again.as_slice(), bytes.as_slice());
            }
        }
    }
}
