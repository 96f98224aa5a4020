//! Pure: the JSON payloads of the data channel and the text frame that opens it.
//!
//! The members' order and null values are those of AWS's programs; unknown members are ignored.
//!
//! | payload | direction | example |
//! |---|---|---|
//! | acknowledge | both | `{"AcknowledgedMessageType":"output_stream_data","AcknowledgedMessageId":"00112233-4455-6677-8899-aabbccddeeff","AcknowledgedMessageSequenceNumber":42,"IsSequentialMessage":true}` |
//! | handshake request | from SSM agent | `{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"9443"}}}]}` |
//! | handshake response | to SSM agent | `{"ClientVersion":"1.2.896.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}` |
//! | handshake complete | from SSM agent | `{"HandshakeTimeToComplete":1500000,"CustomerMessage":""}` |
//! | channel closed | from gateway | `{"MessageId":"…","CreatedDate":"2021-10-01T09:24:34.917Z","DestinationId":"…","SessionId":"…","MessageType":"channel_closed","SchemaVersion":1,"Output":"…"}` |
//! | text frame | to gateway | `{"MessageSchemaVersion":"1.0","RequestId":"…","TokenValue":"…","ClientId":"…","ClientVersion":"1.2.896.0"}` |

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message::{Kind, Uuid};

/// Confirms one message of the other direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AcknowledgeContent {
    pub acknowledged_message_type: String,
    #[serde(default)]
    pub acknowledged_message_id: String,
    pub acknowledged_message_sequence_number: i64,
    #[serde(default)]
    pub is_sequential_message: bool,
}

impl AcknowledgeContent {
    pub fn new(kind: Kind<'_>, id: Uuid, sequence: i64) -> Self {
        Self {
            acknowledged_message_type: kind.name().to_owned(),
            acknowledged_message_id: id.to_string(),
            acknowledged_message_sequence_number: sequence,
            is_sequential_message: true,
        }
    }

    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// What the SSM agent asks of the client before the stream begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeRequest {
    pub agent_version: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub requested_client_actions: Vec<RequestedAction>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestedAction {
    pub action_type: String,
    #[serde(default)]
    pub action_parameters: Value,
}

impl HandshakeRequest {
    /// What the SSM agent sends for a port session.
    pub fn port_session(agent_version: &str, properties: Value) -> Self {
        let action_parameters =
            serde_json::json!({ "SessionType": SESSION_TYPE_PORT, "Properties": properties });
        Self {
            agent_version: agent_version.to_owned(),
            requested_client_actions: vec![RequestedAction {
                action_type: ACTION_SESSION_TYPE.to_owned(),
                action_parameters,
            }],
        }
    }

    pub fn to_json(&self) -> String {
        json(self)
    }

    /// The answer: a port session is taken, everything else is unsupported. The second value says
    /// what was unsupported, if anything was; the SSM agent then cancels the session.
    pub fn answer(&self, client_version: &str) -> (HandshakeResponse, Option<String>) {
        let processed: Vec<_> = self.requested_client_actions.iter().map(RequestedAction::process).collect();
        let unsupported = processed.iter().find(|action| action.action_status != ActionStatus::SUCCESS);
        let unsupported = unsupported.map(|action| action.error.clone());
        let response = HandshakeResponse {
            client_version: client_version.to_owned(),
            processed_client_actions: processed,
            errors: unsupported.clone().map(|error| vec![error]),
        };
        (response, unsupported)
    }
}

impl RequestedAction {
    fn process(&self) -> ProcessedAction {
        let session_type =
            self.action_parameters.get("SessionType").and_then(Value::as_str).unwrap_or_default();
        let error = match self.action_type.as_str() {
            ACTION_SESSION_TYPE if session_type == SESSION_TYPE_PORT => None,
            ACTION_SESSION_TYPE => Some(format!("Session type {session_type:?} is not supported, only Port")),
            other => Some(format!("Action {other:?} is not supported in a Port session")),
        };
        ProcessedAction {
            action_type: self.action_type.clone(),
            action_status: if error.is_none() { ActionStatus::SUCCESS } else { ActionStatus::UNSUPPORTED },
            action_result: Value::Null,
            error: error.unwrap_or_default(),
        }
    }
}

/// The client's answer to the handshake request: one processed action for each requested one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    pub client_version: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub processed_client_actions: Vec<ProcessedAction>,
    #[serde(default)]
    pub errors: Option<Vec<String>>,
}

impl HandshakeResponse {
    pub fn to_json(&self) -> String {
        json(self)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    pub action_type: String,
    pub action_status: ActionStatus,
    #[serde(default)]
    pub action_result: Value,
    #[serde(default)]
    pub error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActionStatus(pub u32);

impl ActionStatus {
    pub const SUCCESS: Self = Self(1);
    pub const FAILED: Self = Self(2);
    pub const UNSUPPORTED: Self = Self(3);
}

/// Ends the handshake; the SSM agent dials the port after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeComplete {
    /// Nanoseconds.
    #[serde(default)]
    pub handshake_time_to_complete: i64,
    #[serde(default, deserialize_with = "null_as_default")]
    pub customer_message: String,
}

impl HandshakeComplete {
    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// The gateway's last word on a session. `output` is empty when it ended in an orderly way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChannelClosed {
    pub message_id: String,
    pub created_date: String,
    pub destination_id: String,
    pub session_id: String,
    pub message_type: String,
    #[serde(deserialize_with = "null_as_default")]
    pub schema_version: u32,
    #[serde(deserialize_with = "null_as_default")]
    pub output: String,
}

impl ChannelClosed {
    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// The text frame that opens the data channel on a new websocket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpenDataChannel {
    pub message_schema_version: String,
    pub request_id: String,
    pub token_value: String,
    /// The same on every websocket of one session.
    pub client_id: String,
    /// Sent by clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
    /// Sent by SSM agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_instance_id: Option<String>,
}

impl OpenDataChannel {
    /// A client's frame.
    pub fn client(request_id: Uuid, token: &str, client_id: Uuid) -> Self {
        Self {
            message_schema_version: "1.0".to_owned(),
            request_id: request_id.to_string(),
            token_value: token.to_owned(),
            client_id: client_id.to_string(),
            client_version: Some(CLIENT_VERSION.to_owned()),
            client_instance_id: None,
        }
    }

    pub fn to_json(&self) -> String {
        json(self)
    }
}

impl fmt::Debug for OpenDataChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDataChannel").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("structs of strings and numbers always serialize")
}

fn null_as_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The client version told to the service and to the SSM agent: one the service supports.
pub const CLIENT_VERSION: &str = "1.2.896.0";
pub const ACTION_SESSION_TYPE: &str = "SessionType";
pub const SESSION_TYPE_PORT: &str = "Port";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn acknowledge_is_the_example() {
        let text = r#"{"AcknowledgedMessageType":"output_stream_data","AcknowledgedMessageId":"00112233-4455-6677-8899-aabbccddeeff","AcknowledgedMessageSequenceNumber":42,"IsSequentialMessage":true}"#;
        let content = AcknowledgeContent::new(Kind::OutputStreamData, ID.parse().unwrap(), 42);
        assert_eq!(content.to_json(), text);
        assert_eq!(serde_json::from_str::<AcknowledgeContent>(text).unwrap(), content);
    }

    #[test]
    fn a_port_request_is_the_example_and_is_answered_with_success() {
        let text = r#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"9443"}}}]}"#;
        let request: HandshakeRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request, HandshakeRequest::port_session("3.3.987.0", json!({ "portNumber": "9443" })));

        let (response, unsupported) = request.answer(CLIENT_VERSION);

        let wanted = r#"{"ClientVersion":"1.2.896.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
        assert_eq!((response.to_json().as_str(), unsupported), (wanted, None));
    }

    #[test]
    fn encryption_is_answered_as_unsupported() {
        let text = r#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port"}},{"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"arn"}}]}"#;
        let request: HandshakeRequest = serde_json::from_str(text).unwrap();

        let (response, unsupported) = request.answer(CLIENT_VERSION);

        let statuses: Vec<_> =
            response.processed_client_actions.iter().map(|action| action.action_status).collect();
        assert_eq!(statuses, [ActionStatus::SUCCESS, ActionStatus::UNSUPPORTED]);
        assert!(unsupported.unwrap().contains("KMSEncryption"));
    }

    #[test]
    fn a_shell_session_is_unsupported() {
        let mut request = HandshakeRequest::port_session("3", json!({}));
        request.requested_client_actions[0].action_parameters = json!({ "SessionType": "Standard_Stream" });
        assert!(request.answer(CLIENT_VERSION).1.unwrap().contains("Standard_Stream"));
    }

    #[test]
    fn channel_closed_may_lack_or_null_everything() {
        assert_eq!(serde_json::from_str::<ChannelClosed>("{}").unwrap().output, "");
        let closed: ChannelClosed = serde_json::from_str(r#"{"Output":null,"SessionId":"s-1"}"#).unwrap();
        assert_eq!((closed.output.as_str(), closed.session_id.as_str()), ("", "s-1"));
    }

    #[test]
    fn the_text_frame_has_the_client_members_and_no_debug_of_the_token() {
        let frame = OpenDataChannel::client(ID.parse().unwrap(), "secret", ID.parse().unwrap());

        let wanted = format!(
            r#"{{"MessageSchemaVersion":"1.0","RequestId":"{ID}","TokenValue":"secret","ClientId":"{ID}","ClientVersion":"1.2.896.0"}}"#
        );
        assert_eq!(frame.to_json(), wanted);
        assert_eq!(serde_json::from_str::<OpenDataChannel>(&wanted).unwrap(), frame);
        assert!(!format!("{frame:?}").contains("secret"));
    }
}
