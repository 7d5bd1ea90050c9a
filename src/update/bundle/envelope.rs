//! What is signed: a body and its signatures behind one short head, for bundles and key sets alike.
//!
//! ```text
//!  0  magic                     8 bytes: which kind
//!  8  version                   u32, little-endian, as all numbers
//! 12  length of the body        u32, at most 64 KiB
//! 16  length of the signatures  u32, at most 8 KiB
//! 20  body                      postcard
//!     signatures                postcard: key and signature, each key once
//! ```

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::{BundleError, PublicKey, SecretKey};

const HEAD: usize = 20;
const FORMAT: u32 = 1;
const MAX_BODY: usize = 1 << 16;
const MAX_SIGNATURES: usize = 1 << 13;

/// Who signed, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The key.
    pub key: PublicKey,
    /// Ed25519: 64 bytes.
    pub bytes: Vec<u8>,
}

/// A body that has been read, and who is said to have signed it. Nothing is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    magic: [u8; 8],
    /// The body, as it was signed.
    pub body: Vec<u8>,
    /// Its signatures.
    pub signatures: Vec<Signature>,
}

impl Envelope {
    /// An unsigned one.
    ///
    /// # Errors
    /// If the body is too long.
    pub fn new(magic: [u8; 8], body: Vec<u8>) -> Result<Self, BundleError> {
        if body.len() > MAX_BODY {
            return Err(BundleError::Damaged(format!(
                "a body of {} bytes, at most {MAX_BODY} are allowed",
                body.len()
            )));
        }
        Ok(Self { magic, body, signatures: Vec::new() })
    }

    /// Reads one and leaves the reader behind its last byte. At most 72 KiB are asked for, whatever the head says.
    ///
    /// # Errors
    /// If it is of another kind, cut off or too long.
    pub fn read(magic: [u8; 8], from: &mut impl Read) -> Result<Self, BundleError> {
        let mut head = [0; HEAD];
        exact(from, &mut head)?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != magic {
            return Err(BundleError::Kind);
        }
        if word(8) != FORMAT {
            return Err(BundleError::Format(word(8)));
        }
        let (body, signatures) = (word(12) as usize, word(16) as usize);
        if body > MAX_BODY || signatures > MAX_SIGNATURES {
            return Err(BundleError::Endless("its head"));
        }
        let (mut body, mut raw) = (vec![0; body], vec![0; signatures]);
        exact(from, &mut body)?;
        exact(from, &mut raw)?;
        let signatures: Vec<Signature> =
            whole(&raw).ok_or_else(|| BundleError::Damaged("its list of signatures".into()))?;
        Ok(Self { magic, body, signatures })
    }

    /// The bytes that [`read`](Self::read) reads.
    ///
    /// # Errors
    /// If there are too many signatures.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let signatures = encoded(&self.signatures)?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(BundleError::Damaged(format!("{} signatures are too many", self.signatures.len())));
        }
        let lengths = [FORMAT, self.body.len() as u32, signatures.len() as u32].map(u32::to_le_bytes);
        Ok([&self.magic[..], lengths.as_flattened(), &self.body, &signatures].concat())
    }

    /// Adds a signature, or renews the key's.
    pub fn sign(&mut self, key: &SecretKey) {
        let signature = Signature { key: key.public(), bytes: key.sign(&self.message()) };
        self.signatures.retain(|other| other.key != signature.key);
        self.signatures.push(signature);
    }

    /// What a key signs: no signature of one kind of file serves another kind.
    pub(super) fn message(&self) -> Vec<u8> {
        [b"cellgate signed 1\0", &self.magic[..], &self.body].concat()
    }
}

/// Fills `buffer`; an early end is a file that is cut off.
pub(super) fn exact(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), BundleError> {
    from.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => BundleError::Truncated,
        _ => BundleError::Io(error),
    })
}

/// Postcard, of which no byte is left over.
pub(super) fn whole<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::take_from_bytes(bytes).ok().filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value)
}

pub(super) fn encoded(value: &impl Serialize) -> Result<Vec<u8>, BundleError> {
    postcard::to_stdvec(value).map_err(|error| BundleError::Damaged(format!("it cannot be encoded: {error}")))
}
