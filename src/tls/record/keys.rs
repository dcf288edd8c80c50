//! The keys of one direction: derived from its traffic secret, used once per sequence number.

use std::fmt;
use std::hint::black_box;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::{CipherSuite, SupportedCipherSuite};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{HEADER, TRAILER};
use crate::base::{Error, Result};

/// RFC 8446 §5.3: the nonce of each AEAD of TLS 1.3.
const NONCE: usize = 12;

pub(super) const TAG: usize = 16;

/// Of SHA-384: the longest that a traffic secret can be.
const LONGEST_HASH: usize = 48;

/// The AEAD of a connection and the hash that its keys are derived with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suite {
    /// TLS_AES_128_GCM_SHA256.
    Aes128Gcm,
    /// TLS_AES_256_GCM_SHA384.
    Aes256Gcm,
    /// TLS_CHACHA20_POLY1305_SHA256.
    ChaCha20Poly1305,
}

impl Suite {
    pub(super) fn of(suite: SupportedCipherSuite) -> Result<Self> {
        match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Ok(Self::Aes128Gcm),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Ok(Self::Aes256Gcm),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Ok(Self::ChaCha20Poly1305),
            other => Err(Error::internal(format!("records of cipher suite {other:?}"))),
        }
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => hkdf::HKDF_SHA256,
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
        }
    }

    pub(super) fn hash_len(self) -> usize {
        self.hkdf().hmac_algorithm().digest_algorithm().output_len()
    }

    /// How many records one key may seal (RFC 8446 §5.5).
    pub(super) fn confidentiality_limit(self) -> u64 {
        let suite = match self {
            Self::Aes128Gcm => cipher_suite::TLS13_AES_128_GCM_SHA256,
            Self::Aes256Gcm => cipher_suite::TLS13_AES_256_GCM_SHA384,
            Self::ChaCha20Poly1305 => cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        };
        suite.tls13().map_or(0, |suite| suite.common.confidentiality_limit)
    }
}

/// Bytes that nobody else may know, such as a traffic secret. They have no `Debug`, and are wiped when they are dropped.
pub struct Secret(Vec<u8>);

impl Secret {
    /// For whoever may know them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Without a reader the compiler may leave the wiping out.
        black_box(&self.0);
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.bytes().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(InPlace)
    }
}

/// Reads a traffic secret into memory that never moves, so that no copy of it stays behind.
struct InPlace;

impl<'de> Visitor<'de> for InPlace {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a traffic secret")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> std::result::Result<Secret, A::Error> {
        let mut secret = Secret::from(vec![0; LONGEST_HASH]);
        let mut length = 0;
        while let Some(byte) = bytes.next_element()? {
            *secret.0.get_mut(length).ok_or_else(|| A::Error::custom("a traffic secret that is too long"))? = byte;
            length += 1;
        }
        secret.0.truncate(length);
        Ok(secret)
    }
}

/// One direction of a connection.
pub(super) struct Keys {
    suite: Suite,
    secret: Secret,
    key: LessSafeKey,
    iv: [u8; NONCE],
    sequence: u64,
}

impl Keys {
    /// # Errors
    /// The secret is not as long as the hash of `suite`.
    pub(super) fn new(suite: Suite, secret: Secret, sequence: u64) -> Result<Self> {
        if secret.bytes().len() != suite.hash_len() {
            return Err(Error::internal("a traffic secret has the wrong length"));
        }
        // RFC 8446 §7.3
        let (mut key, mut iv) = ([0; 32], [0; NONCE]);
        let key_bytes = &mut key[..suite.aead().key_len()];
        expand_label(suite, &secret, b"key", key_bytes)?;
        expand_label(suite, &secret, b"iv", &mut iv)?;
        let unbound = UnboundKey::new(suite.aead(), key_bytes).map_err(|_| Error::internal("a traffic key cannot be used"))?;
        key.fill(0);
        black_box(&key);
        Ok(Self { suite, secret, key: LessSafeKey::new(unbound), iv, sequence })
    }

    /// The next generation (RFC 8446 §7.2); its sequence numbers start at 0 (§5.3).
    pub(super) fn advance(&mut self) -> Result<()> {
        let mut next = Secret(vec![0; self.suite.hash_len()]);
        expand_label(self.suite, &self.secret, b"traffic upd", &mut next.0)?;
        *self = Self::new(self.suite, next, 0)?;
        Ok(())
    }

    pub(super) fn suite(&self) -> Suite {
        self.suite
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Of the next record.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Seals `record` in place: [`HEADER`] bytes of room, the content, [`TRAILER`] bytes of room. The caller has checked the sizes.
    pub(super) fn seal(&mut self, content_type: u8, record: &mut [u8]) -> Result<()> {
        let misfit = || Error::internal("a record without room for header and trailer");
        let (header, body) = record.split_first_chunk_mut::<HEADER>().ok_or_else(misfit)?;
        let length = u16::try_from(body.len()).map_err(|_| misfit())?;
        let (inner, tag) = body.split_last_chunk_mut::<TAG>().ok_or_else(misfit)?;
        // RFC 8446 §5.2: the true type stands behind the content, the outer one is always application_data.
        *inner.last_mut().ok_or_else(misfit)? = content_type;
        let [high, low] = length.to_be_bytes();
        *header = [super::APPLICATION_DATA, 3, 3, high, low];
        let sealed = self.key.seal_in_place_separate_tag(self.nonce()?, Aad::from(*header), inner);
        tag.copy_from_slice(sealed.map_err(|_| Error::internal("a record could not be sealed"))?.as_ref());
        self.sequence += 1;
        Ok(())
    }

    /// Opens the body of one record in place; says how long its inner plaintext is. None: it is not authentic.
    pub(super) fn open(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Option<usize> {
        let (inner, tag) = body.split_last_chunk_mut::<TAG>()?;
        // Not `open_in_place`: it moves the plaintext onto itself, which is a third of its time.
        self.key.open_in_place_separate_tag(self.nonce().ok()?, Aad::from(header), tag, inner).ok()?;
        self.sequence += 1;
        Some(inner.len())
    }

    /// RFC 8446 §5.3: the sequence number, padded on the left, XOR the initialization vector.
    fn nonce(&self) -> Result<Nonce> {
        // "Sequence numbers ... MUST NOT wrap": the last number is never used, so counting on cannot overflow.
        if self.sequence == u64::MAX {
            return Err(Error::internal("the sequence numbers of a connection are used up"));
        }
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
fn expand_label(suite: Suite, secret: &Secret, label: &[u8], out: &mut [u8]) -> Result<()> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let failed = || Error::internal("a key could not be derived");
    let length = u16::try_from(out.len()).map_err(|_| failed())?.to_be_bytes();
    let label_len = u8::try_from(PREFIX.len() + label.len()).map_err(|_| failed())?;
    let info = [&length[..], &[label_len], PREFIX, label, &[0]];
    let key = hkdf::Prk::new_less_safe(suite.hkdf(), secret.bytes());
    key.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out)).map_err(|_| failed())
}

// A sealed record is larger than its content by exactly this.
const _: () = assert!(TRAILER == 1 + TAG);
