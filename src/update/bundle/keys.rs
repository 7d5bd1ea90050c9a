//! Who may sign: Ed25519 keys, and sets of them with a threshold, each signed by the set before it.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use ed25519_dalek::{Signature as Ed25519, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::envelope::{encoded, whole};
use super::{BundleError, Envelope};

/// The first eight bytes of a key-set file (`.cgk`).
pub const KEY_SET_MAGIC: [u8; 8] = *b"CGKEYSET";
const MAX_KEYS: usize = 32;

/// A public key. Displays as 64 hexadecimal digits and is read from them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key must be 64 hexadecimal digits")]
pub struct NoKey;

fn digits(text: &str) -> Result<[u8; 32], NoKey> {
    let text = text.trim().as_bytes();
    let mut key = [0; 32];
    if text.len() != 64 {
        return Err(NoKey);
    }
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).ok_or(NoKey);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(key)
}

impl FromStr for PublicKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        digits(text).map(Self)
    }
}

/// A key that signs. It has no `Debug`: it must reach no log.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// From the text of a key file: the seed as 64 hexadecimal digits.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_text(text: &str) -> Result<Self, NoKey> {
        digits(text).map(|seed| Self::from_seed(&seed))
    }

    /// The text of a key file.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}\n", PublicKey(self.0.to_bytes()))
    }

    /// What others check its signatures with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_bytes().to_vec()
    }
}

/// Keys of which at least `threshold` must sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// Counts from 1; the next set has the next number.
    pub version: u64,
    /// Signatures by different keys that are needed: 1 to the number of keys.
    pub threshold: u8,
    /// The keys, each once.
    pub keys: Vec<PublicKey>,
}

impl KeySet {
    /// An unsigned key-set file.
    ///
    /// # Errors
    /// If the threshold cannot be met or a key is there twice.
    pub fn to_envelope(&self) -> Result<Envelope, BundleError> {
        self.check()?;
        Envelope::new(KEY_SET_MAGIC, encoded(self)?)
    }

    fn check(&self) -> Result<(), BundleError> {
        let wrong = |why: String| Err(BundleError::KeySet(why));
        let mut keys = self.keys.clone();
        keys.sort_unstable();
        keys.dedup();
        if keys.len() != self.keys.len() || self.keys.is_empty() || self.keys.len() > MAX_KEYS {
            return wrong(format!(
                "{} keys, {} of them different; 1 to {MAX_KEYS} are allowed",
                self.keys.len(),
                keys.len()
            ));
        }
        if self.threshold == 0 || usize::from(self.threshold) > self.keys.len() {
            return wrong(format!("a threshold of {} for {} keys", self.threshold, self.keys.len()));
        }
        if self.version == 0 {
            return wrong("version 0; versions count from 1".into());
        }
        for key in &self.keys {
            let sound = VerifyingKey::from_bytes(&key.0).is_ok_and(|key| !key.is_weak());
            if !sound {
                return wrong(format!("{key} is no Ed25519 public key"));
            }
        }
        Ok(())
    }

    /// What a key-set file says, unchecked but for its form.
    ///
    /// # Errors
    /// If it is not a key set.
    pub fn peek(envelope: &Envelope) -> Result<Self, BundleError> {
        let set: Self = whole(&envelope.body).ok_or_else(|| BundleError::KeySet("it cannot be read".into()))?;
        set.check()?;
        Ok(set)
    }

    /// The set that all trust begins with: whoever hands it over must be trusted. It must be signed by its own keys, so
    /// that nobody trusts keys that nobody holds.
    ///
    /// # Errors
    /// If it is damaged or not signed by its own threshold.
    pub fn trust(file: &mut impl Read) -> Result<(Self, Envelope), BundleError> {
        let envelope = Envelope::read(KEY_SET_MAGIC, file)?;
        let set = Self::peek(&envelope)?;
        set.verify(&envelope)?;
        Ok((set, envelope))
    }

    /// The set that follows this one: the next number, signed by a threshold of these keys and of its own.
    ///
    /// # Errors
    /// If it is another number, or too few have signed.
    pub fn rotate(&self, file: &mut impl Read) -> Result<(Self, Envelope), BundleError> {
        let envelope = Envelope::read(KEY_SET_MAGIC, file)?;
        let next = Self::peek(&envelope)?;
        if self.version.checked_add(1) != Some(next.version) {
            return Err(BundleError::KeySet(format!(
                "version {} does not follow version {}",
                next.version, self.version
            )));
        }
        self.verify(&envelope)?;
        next.verify(&envelope)?;
        Ok((next, envelope))
    }

    /// Counts the different keys of this set that signed.
    ///
    /// # Errors
    /// If they are fewer than the threshold, or a signature by one of these keys is wrong.
    pub fn verify(&self, envelope: &Envelope) -> Result<(), BundleError> {
        let message = envelope.message();
        let mut signed: Vec<PublicKey> = Vec::new();
        for signature in &envelope.signatures {
            // Others may sign too: the old keys sign the new set, and mean nothing once it is in force.
            if !self.keys.contains(&signature.key) || signed.contains(&signature.key) {
                continue;
            }
            let valid = Ed25519::from_slice(&signature.bytes)
                .and_then(|bytes| VerifyingKey::from_bytes(&signature.key.0)?.verify_strict(&message, &bytes));
            if valid.is_err() {
                return Err(BundleError::Forged(signature.key));
            }
            signed.push(signature.key);
        }
        if signed.len() < usize::from(self.threshold) {
            let (found, needed) = (signed.len(), self.threshold);
            return Err(BundleError::TooFew { found, needed, keys: self.version });
        }
        Ok(())
    }
}
