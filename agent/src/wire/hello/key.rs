//! Pure: keys, secrets and proofs of the handshake.
//!
//! ```text
//! shared = X25519(agent's static key, client's key of this trunk)
//! base   = HMAC-SHA256(shared key file's digest, or 32 zero bytes without one; shared)
//! secret = HMAC-SHA256(base; "ssm-proxy trunk" | trunk id | client's key | agent's key)
//! proof  = HMAC-SHA256(secret; label | every handshake body before the proof, each behind its length u32)
//! ```
//!
//! Only the holder of the agent's static key, and of the key file where there is one, can know the secret.

use std::fmt;
use std::hint::black_box;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use x25519_dalek::StaticSecret;

use super::TrunkId;

/// The agent's lasting public key, which the client pins per instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// The agent's lasting key.
#[derive(Clone)]
pub struct AgentKey(StaticSecret);

/// What both ends of one trunk know and nobody else; resuming it takes a proof.
#[derive(Clone)]
pub struct Secret([u8; 32]);

/// A key from a file that both ends have.
#[derive(Clone)]
pub struct Psk([u8; 32]);

/// The key file holds too little to be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortKey {
    pub length: usize,
}

/// The client's key of one trunk.
pub(super) struct TrunkKey(StaticSecret);

impl AgentKey {
    /// Any 32 bytes nobody can guess are a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// The secret of a new trunk; `None` when the client's key is one that makes it guessable.
    pub(super) fn secret(&self, id: &TrunkId, client: &PublicKey, psk: Option<&Psk>) -> Option<Secret> {
        let shared = self.0.diffie_hellman(&client.0.into());
        shared.was_contributory().then(|| Secret::derive(shared.as_bytes(), id, client, &self.public(), psk))
    }
}

impl TrunkKey {
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    pub(super) fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// See [`AgentKey::secret`].
    pub(super) fn secret(&self, id: &TrunkId, agent: &PublicKey, psk: Option<&Psk>) -> Option<Secret> {
        let shared = self.0.diffie_hellman(&agent.0.into());
        shared.was_contributory().then(|| Secret::derive(shared.as_bytes(), id, &self.public(), agent, psk))
    }
}

impl Secret {
    fn derive(
        shared: &[u8; 32],
        id: &TrunkId,
        client: &PublicKey,
        agent: &PublicKey,
        psk: Option<&Psk>,
    ) -> Self {
        let mut base = mac(psk.map_or(&[0; 32], |psk| &psk.0), &[shared]);
        let secret = Self(mac(&base, &[b"ssm-proxy trunk", &id.0, &client.0, &agent.0]));
        erase(&mut base);
        secret
    }

    /// Whether both are the same, found in a time that tells nothing.
    pub(super) fn same(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |found, (a, b)| found | (a ^ b));
        black_box(differing) == 0
    }

    pub(super) fn prove(&self, label: &[u8], bodies: &[&[u8]]) -> [u8; 32] {
        self.proof(label, bodies).finalize().into_bytes().into()
    }

    /// Whether `proof` was made with this secret over the same bodies; takes the same time for every proof.
    pub(super) fn proves(&self, label: &[u8], bodies: &[&[u8]], proof: &[u8; 32]) -> bool {
        self.proof(label, bodies).verify_slice(proof).is_ok()
    }

    fn proof(&self, label: &[u8], bodies: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = keyed(&self.0);
        mac.update(label);
        for body in bodies {
            mac.update(&(body.len() as u32).to_be_bytes());
            mac.update(body);
        }
        mac
    }
}

impl Psk {
    /// The key in a file's content; white space around it does not count.
    pub fn from_file_content(content: &[u8]) -> Result<Self, ShortKey> {
        let key = content.trim_ascii();
        if key.len() < SHORTEST_PSK {
            return Err(ShortKey { length: key.len() });
        }
        Ok(Self(Sha256::digest(key).into()))
    }
}

/// Stretches entropy into as many independent values as there are labels.
pub(super) fn expand(entropy: &[u8; 32], label: &[u8]) -> [u8; 32] {
    mac(entropy, &[label])
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Overwrites a secret in a way the optimiser has to keep.
pub(super) fn erase(secret: &mut [u8]) {
    secret.fill(0);
    black_box(secret);
}

impl Drop for Secret {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

impl Drop for Psk {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

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

impl fmt::Display for ShortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key file holds {} bytes, a key has at least {SHORTEST_PSK}", self.length)
    }
}

impl std::error::Error for ShortKey {}

const SHORTEST_PSK: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_come_to_the_same_secret() {
        let (agent, client, id) =
            (AgentKey::from_bytes([1; 32]), TrunkKey::from_bytes([2; 32]), TrunkId([3; 16]));
        let psk = Psk::from_file_content(b" 0123456789abcdef\n").unwrap();
        for psk in [None, Some(&psk)] {
            let at_agent = agent.secret(&id, &client.public(), psk).unwrap();
            let at_client = client.secret(&id, &agent.public(), psk).unwrap();
            assert!(at_agent.same(&at_client));
        }
        let with = agent.secret(&id, &client.public(), Some(&psk)).unwrap();
        assert!(!with.same(&agent.secret(&id, &client.public(), None).unwrap()));
        assert!(!with.same(&agent.secret(&TrunkId([4; 16]), &client.public(), Some(&psk)).unwrap()));
    }

    #[test]
    fn keys_that_make_the_secret_guessable_are_refused() {
        assert!(AgentKey::from_bytes([1; 32]).secret(&TrunkId([3; 16]), &PublicKey([0; 32]), None).is_none());
        assert!(TrunkKey::from_bytes([1; 32]).secret(&TrunkId([3; 16]), &PublicKey([0; 32]), None).is_none());
    }

    #[test]
    fn a_proof_holds_for_its_label_and_bodies_only() {
        let secret = Secret([7; 32]);
        let proof = secret.prove(b"client", &[b"ab", b"c"]);
        assert!(secret.proves(b"client", &[b"ab", b"c"], &proof));
        assert!(!secret.proves(b"agent", &[b"ab", b"c"], &proof));
        assert!(!secret.proves(b"client", &[b"a", b"bc"], &proof));
    }

    #[test]
    fn short_key_files_are_refused() {
        assert_eq!(Psk::from_file_content(b"  short \n").err(), Some(ShortKey { length: 5 }));
    }
}
