//! Pure: what a strict service checks of a client: the first text frame and every binary message.
//!
//! The checks read the raw bytes beside the shared codec where a codec that is wrong both ways would
//! hide a fault.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use ssm_proxy::ssm::handshake::{AcknowledgeContent, HandshakeResponse};
use ssm_proxy::ssm::message::{Kind, Message, PayloadType, Uuid, digest_of};

/// What the service knows of one session's client.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// The highest sequence number the client has sent.
    highest: Option<i64>,
    /// A message may have been lost with the last websocket, so one gap is no fault.
    gap_allowed: bool,
    sent: BTreeMap<i64, Sent>,
    requested_actions: Option<usize>,
    /// Ids of the stream messages given to the client, the first of sequence `delivered_from`.
    delivered: VecDeque<Option<Uuid>>,
    delivered_from: i64,
}

/// How a resent message must look: as it did the first time.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    id: Uuid,
    digest: [u8; 32],
    payload_type: Option<PayloadType>,
}

/// A client message that passed.
#[derive(Debug)]
pub(crate) enum Accepted<'a> {
    Stream { message: Message<'a>, resent: bool },
    Acknowledgement,
}

impl Audit {
    /// The client is on a new websocket.
    pub(crate) fn reconnected(&mut self) {
        self.gap_allowed = true;
    }

    /// A handshake request with so many actions is on its way to the client.
    pub(crate) fn requested(&mut self, actions: usize) {
        self.requested_actions = Some(actions);
    }

    /// A stream message is on its way to the client.
    pub(crate) fn delivered(&mut self, sequence: i64, id: Uuid) {
        let Ok(at) = usize::try_from(sequence - self.delivered_from) else { return };
        if at >= self.delivered.len() {
            self.delivered.resize(at + 1, None);
        }
        self.delivered[at] = Some(id);
        while self.delivered.len() > REMEMBERED {
            self.delivered.pop_front();
            self.delivered_from += 1;
        }
    }

    /// Checks one binary message of the client. The error says what a strict service objects to.
    pub(crate) fn check<'a>(&mut self, bytes: &'a [u8], now: SystemTime) -> Result<Accepted<'a>, String> {
        let message = check_header(bytes, now)?;
        match message.kind {
            Kind::InputStreamData => {
                let resent = self.check_stream(&message)?;
                Ok(Accepted::Stream { message, resent })
            }
            Kind::Acknowledge => {
                self.check_acknowledgement(&message)?;
                Ok(Accepted::Acknowledgement)
            }
            Kind::OutputStreamData
            | Kind::ChannelClosed
            | Kind::StartPublication
            | Kind::PausePublication
            | Kind::AgentSessionState
            | Kind::Other(_) => {
                Err(format!("a client must not send messages of type {:?}", message.kind.name()))
            }
        }
    }

    fn check_stream(&mut self, message: &Message<'_>) -> Result<bool, String> {
        let sequence = message.sequence;
        if message.flags != 0 {
            return Err(format!("input_stream_data {sequence} has flags {}, not 0", message.flags));
        }
        if message.payload.is_empty() {
            return Err(format!("input_stream_data {sequence} has an empty payload"));
        }
        self.check_order(sequence)?;
        self.check_payload(message)?;
        let sent = Sent { id: message.id, digest: message.digest, payload_type: message.payload_type };
        let resent = self.highest.is_some_and(|highest| sequence <= highest);
        if let Some(before) = self.sent.get(&sequence) {
            if *before != sent {
                return Err(format!(
                    "input_stream_data {sequence} was sent again with another id or payload"
                ));
            }
        } else {
            self.sent.insert(sequence, sent);
        }
        while self.sent.len() > REMEMBERED {
            self.sent.pop_first();
        }
        self.highest = self.highest.max(Some(sequence));
        Ok(resent)
    }

    fn check_order(&mut self, sequence: i64) -> Result<(), String> {
        let next = self.highest.map_or(0, |highest| highest + 1);
        if sequence < 0 {
            return Err(format!("input_stream_data has the sequence number {sequence}"));
        }
        if sequence > next {
            if !self.gap_allowed || sequence > next + LARGEST_GAP {
                return Err(format!("input_stream_data {sequence} came where {next} was the next one"));
            }
            self.gap_allowed = false;
        }
        Ok(())
    }

    fn check_payload(&self, message: &Message<'_>) -> Result<(), String> {
        let sequence = message.sequence;
        match message.payload_type {
            Some(PayloadType::HANDSHAKE_RESPONSE) if sequence == 0 => {
                self.check_handshake_response(message.payload)
            }
            Some(PayloadType::HANDSHAKE_RESPONSE) => {
                Err(format!("the handshake was answered a second time, as input_stream_data {sequence}"))
            }
            Some(_) if sequence == 0 => Err("input_stream_data 0 is not the handshake response".to_owned()),
            Some(PayloadType::OUTPUT) => Ok(()),
            Some(PayloadType::FLAG) => match <[u8; 4]>::try_from(message.payload).map(u32::from_be_bytes) {
                Ok(1 | 2) => Ok(()),
                Ok(flag) => Err(format!("a client must not send the flag {flag}")),
                Err(_) => Err(format!("a flag payload has {} bytes, not 4", message.payload.len())),
            },
            Some(PayloadType(number)) => {
                Err(format!("payload type {number} has no place in a port session's input_stream_data"))
            }
            None => Err("input_stream_data without a payload type".to_owned()),
        }
    }

    fn check_handshake_response(&self, payload: &[u8]) -> Result<(), String> {
        let actions = self.requested_actions.ok_or("the handshake was answered before it was requested")?;
        let fault =
            |error: &dyn std::fmt::Display| format!("the handshake response is not as it should be: {error}");
        let raw: Value = serde_json::from_slice(payload).map_err(|error| fault(&error))?;
        let response: HandshakeResponse = serde_json::from_slice(payload).map_err(|error| fault(&error))?;
        if version(&response.client_version).is_none() {
            return Err(fault(&format!("ClientVersion {:?} is no version", response.client_version)));
        }
        let processed = raw["ProcessedClientActions"].as_array().map_or(0, Vec::len);
        if processed != actions {
            return Err(fault(&format!("{processed} processed actions for {actions} requested ones")));
        }
        let has_result = |action: &Value| action.get("ActionResult").is_some();
        if !raw["ProcessedClientActions"].as_array().into_iter().flatten().all(has_result) {
            return Err(fault(&"an action without ActionResult"));
        }
        Ok(())
    }

    fn check_acknowledgement(&self, message: &Message<'_>) -> Result<(), String> {
        if (message.sequence, message.flags) != (0, 3) {
            let (sequence, flags) = (message.sequence, message.flags);
            return Err(format!("an acknowledgement has sequence {sequence} and flags {flags}, not 0 and 3"));
        }
        if message.payload_type != Some(PayloadType::NONE) {
            return Err("an acknowledgement has a payload type other than 0".to_owned());
        }
        let content: AcknowledgeContent = serde_json::from_slice(message.payload)
            .map_err(|error| format!("an acknowledgement is not the JSON it should be: {error}"))?;
        let sequence = content.acknowledged_message_sequence_number;
        if content.acknowledged_message_type != "output_stream_data" || !content.is_sequential_message {
            return Err(format!("the acknowledgement of {sequence} names a wrong type or is not sequential"));
        }
        if sequence < 0 || sequence >= self.delivered_from + self.delivered.len() as i64 {
            return Err(format!("an acknowledgement of {sequence}, which was never sent"));
        }
        let Ok(at) = usize::try_from(sequence - self.delivered_from) else { return Ok(()) };
        match self.delivered[at] {
            None => Err(format!("an acknowledgement of {sequence}, which was never delivered")),
            Some(id) if id.to_string() == content.acknowledged_message_id => Ok(()),
            Some(id) => {
                let named = content.acknowledged_message_id;
                Err(format!("the acknowledgement of {sequence} names the id {named}, not {id}"))
            }
        }
    }
}

fn check_header(bytes: &[u8], now: SystemTime) -> Result<Message<'_>, String> {
    let message = Message::parse(bytes).map_err(|error| format!("a binary message is malformed: {error}"))?;
    if bytes.get(..4) != Some(&116u32.to_be_bytes()) {
        return Err("the header length of a client message is not 116".to_owned());
    }
    let mut wanted_type = [b' '; 32];
    let name = message.kind.name().as_bytes();
    wanted_type[..name.len()].copy_from_slice(name);
    if bytes.get(4..36) != Some(&wanted_type) {
        return Err("the message type is not ASCII padded with spaces".to_owned());
    }
    if message.schema_version != 1 {
        return Err(format!("schema version {} is not 1", message.schema_version));
    }
    let stated =
        bytes.get(116..120).and_then(|field| <[u8; 4]>::try_from(field).ok()).map(u32::from_be_bytes);
    if stated.map(|stated| stated as usize) != Some(bytes.len() - 120) {
        return Err("the payload length is not the number of bytes that follow".to_owned());
    }
    if message.digest != digest_of(message.payload) {
        return Err(format!("the digest of message {} is not its payload's SHA-256", message.sequence));
    }
    let created = UNIX_EPOCH + Duration::from_millis(message.created_ms.min(1 << 52));
    let apart = created.duration_since(now).or_else(|_| now.duration_since(created)).unwrap_or_default();
    if apart > DAY {
        return Err(format!("the date of creation is {} hours from now", apart.as_secs() / 3600));
    }
    // Version 4 and its variant, where the swapped halves put them.
    if bytes[78] >> 4 != 4 || bytes[64] >> 6 != 2 {
        return Err("the message id is not a random uuid".to_owned());
    }
    Ok(message)
}

/// The first text frame of a client's websocket, checked.
pub(crate) struct Opening {
    pub(crate) token: String,
    pub(crate) client_id: String,
}

/// Checks the first text frame.
pub(crate) fn check_opening(text: &str) -> Result<Opening, String> {
    let frame: Value =
        serde_json::from_str(text).map_err(|error| format!("the first text frame is not JSON: {error}"))?;
    let members = frame.as_object().ok_or("the first text frame is no JSON object")?;
    const KNOWN: [&str; 5] = ["MessageSchemaVersion", "RequestId", "TokenValue", "ClientId", "ClientVersion"];
    if let Some(unknown) = members.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("the first text frame has the unknown member {unknown}"));
    }
    let member = |name: &str| {
        let value = members.get(name).and_then(Value::as_str);
        value.ok_or_else(|| format!("the first text frame lacks the string {name}"))
    };
    if member("MessageSchemaVersion")? != "1.0" {
        return Err("MessageSchemaVersion is not 1.0".to_owned());
    }
    for name in ["RequestId", "ClientId"] {
        if !is_uuid(member(name)?) {
            return Err(format!("{name} is not a uuid in lower case with hyphens"));
        }
    }
    let client_version = member("ClientVersion")?;
    if version(client_version).is_none_or(|version| version < LEAST_VERSION) {
        return Err(format!(
            "ClientVersion {client_version} is below 1.2.764.0, the least that is supported"
        ));
    }
    Ok(Opening { token: member("TokenValue")?.to_owned(), client_id: member("ClientId")?.to_owned() })
}

fn version(text: &str) -> Option<[u32; 4]> {
    let parts: Vec<u32> = text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    parts.try_into().ok()
}

fn is_uuid(text: &str) -> bool {
    text.parse::<Uuid>().is_ok_and(|uuid| uuid.to_string() == text)
}

/// How many sequence numbers' ids are kept for checks of repeats and acknowledgements.
const REMEMBERED: usize = 16_384;
const LARGEST_GAP: i64 = 10_000;
const LEAST_VERSION: [u32; 4] = [1, 2, 764, 0];
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16];

    fn now_ms() -> u64 {
        1_700_000_000_000
    }

    fn input(sequence: i64, payload_type: PayloadType, payload: &[u8]) -> Vec<u8> {
        Message::new(Kind::InputStreamData, sequence, Uuid(ID), now_ms(), payload_type, payload).to_vec()
    }

    fn answered() -> Audit {
        let mut audit = Audit::default();
        audit.requested(1);
        let answer = br#"{"ClientVersion":"1.2.896.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
        check(&mut audit, &input(0, PayloadType::HANDSHAKE_RESPONSE, answer)).unwrap();
        audit
    }

    fn check(audit: &mut Audit, bytes: &[u8]) -> Result<(), String> {
        audit.check(bytes, UNIX_EPOCH + Duration::from_millis(now_ms())).map(|_| ())
    }

    #[track_caller]
    fn objects(audit: &mut Audit, bytes: &[u8], needle: &str) {
        let error = check(audit, bytes).unwrap_err();
        assert!(error.contains(needle), "{error}");
    }

    #[test]
    fn a_stream_in_order_passes_and_a_gap_does_not() {
        let mut audit = answered();
        check(&mut audit, &input(1, PayloadType::OUTPUT, b"a")).unwrap();
        check(&mut audit, &input(1, PayloadType::OUTPUT, b"a")).unwrap();
        objects(&mut audit, &input(3, PayloadType::OUTPUT, b"c"), "where 2 was the next");
        audit.reconnected();
        check(&mut audit, &input(3, PayloadType::OUTPUT, b"c")).unwrap();
        check(&mut audit, &input(2, PayloadType::OUTPUT, b"b")).unwrap();
    }

    #[test]
    fn every_deviation_has_its_objection() {
        let good = input(1, PayloadType::OUTPUT, b"hello");
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        objects(&mut answered(), &with(3, 112), "header length");
        objects(&mut answered(), &with(35, 0), "padded with spaces");
        objects(&mut answered(), &with(39, 2), "schema version 2");
        objects(&mut answered(), &with(44, 0), "hours from now");
        objects(&mut answered(), &with(63, 3), "flags 3");
        objects(&mut answered(), &with(80, 0), "digest");
        objects(&mut answered(), &with(119, 4), "payload length");
        objects(&mut answered(), &good[..100], "malformed");
        objects(&mut answered(), &input(1, PayloadType::OUTPUT, b""), "empty payload");
        objects(&mut answered(), &input(1, PayloadType::SIZE, b"x"), "payload type 3");
        objects(&mut answered(), &input(1, PayloadType::FLAG, b"x"), "not 4");
        objects(&mut answered(), &input(1, PayloadType::HANDSHAKE_RESPONSE, b"{}"), "second time");
        objects(&mut Audit::default(), &input(0, PayloadType::OUTPUT, b"x"), "is not the handshake response");
        objects(&mut Audit::default(), &input(0, PayloadType::HANDSHAKE_RESPONSE, b"{}"), "before it was");
    }

    #[test]
    fn a_repeat_must_be_the_same_message() {
        let mut audit = answered();
        check(&mut audit, &input(1, PayloadType::OUTPUT, b"a")).unwrap();
        objects(&mut audit, &input(1, PayloadType::OUTPUT, b"b"), "another id or payload");
    }

    #[test]
    fn acknowledgements_name_messages_that_were_delivered() {
        let acknowledgement = |sequence: i64, id: Uuid| {
            let json = AcknowledgeContent::new(Kind::OutputStreamData, id, sequence).to_json();
            let (kind, none) = (Kind::Acknowledge, PayloadType::NONE);
            let mut message = Message::new(kind, 0, Uuid(ID), now_ms(), none, json.as_bytes());
            message.flags = 3;
            message.to_vec()
        };
        let mut audit = answered();
        audit.delivered(0, Uuid(ID));
        audit.delivered(2, Uuid(ID));
        check(&mut audit, &acknowledgement(2, Uuid(ID))).unwrap();
        check(&mut audit, &acknowledgement(0, Uuid(ID))).unwrap();
        objects(&mut audit, &acknowledgement(3, Uuid(ID)), "never sent");
        objects(&mut audit, &acknowledgement(1, Uuid(ID)), "never delivered");
        objects(&mut audit, &acknowledgement(0, Uuid([9; 16])), "names the id");
    }

    #[test]
    fn the_opening_frame_needs_its_members() {
        let frame = |version: &str, id: &str| {
            format!(
                r#"{{"MessageSchemaVersion":"1.0","RequestId":"{id}","TokenValue":"t","ClientId":"{id}","ClientVersion":"{version}"}}"#
            )
        };
        let id = Uuid(ID).to_string();
        assert_eq!(check_opening(&frame("1.2.896.0", &id)).map(|opening| opening.token).unwrap(), "t");
        assert!(check_opening(&frame("1.1.0.0", &id)).is_err());
        assert!(check_opening(&frame("1.2.896.0", &id.to_uppercase())).is_err());
        assert!(check_opening("{}").is_err());
    }
}
