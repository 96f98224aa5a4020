//! Pure: greeting by the agent, hello by the client, welcome or denial by the agent.
//!
//! Contract (what serve.rs and the client's tunnel are written against):
//!
//! ```text
//! pub struct TrunkId(pub [u8; 16]);
//! pub struct Ticket { pub id: TrunkId, secret: [u8; 32] }          // no Debug of the secret
//! pub struct Psk(..)                                               // from a key file, no Debug
//! pub struct AgentKey(..): AgentKey::from_bytes([u8; 32]), public() -> PublicKey([u8; 32])
//!
//! ClientHandshake::new(ClientParams { ticket: Option<Ticket>, lane: LaneId, kind: LaneKind, psk: Option<Psk>,
//!     pinned: Option<PublicKey>, ping_interval: Duration, live_lanes: Vec<LaneId>, entropy: [u8; 64], version: String })
//!     .handle_bytes(&[u8]) -> Result<Option<Welcomed>, HelloError>   // bytes after the welcome are in Welcomed::leftover
//!     .poll_transmit() -> Option<Vec<u8>>
//! struct Welcomed { ticket: Ticket, resumed: bool, agent_version: String, agent_key: PublicKey, hello: [u8; 32], max_lanes: u16, leftover: Vec<u8> }
//!
//! AgentHandshake::new(AgentParams { key: AgentKey, psk: Option<Psk>, max_lanes: u16, version: String, nonce: [u8; 32] })
//!     .poll_transmit() -> Option<Vec<u8>>                            // the greeting first
//!     .handle_bytes(&[u8], known: &dyn Fn(&TrunkId) -> Option<Secret>) -> Result<Option<Admitted>, HelloError>
//! struct Admitted { ticket: Ticket, resumed: bool, lane: LaneId, kind: LaneKind, ping_interval: Duration,
//!     live_lanes: Vec<LaneId>, hello: [u8; 32], client_version: String, leftover: Vec<u8> }
//! ```
