//! Pure: why a lane over SSM ended, in the user's words.

use std::io;
use std::time::Duration;

use crate::ssm::api::OpenError;
use crate::ssm::api_error::{ApiError, chain};
use crate::ssm::channel::ChannelError;

/// Why a lane over SSM ended or did not open. `io::Error`s of a lane carry one: see
/// [`of`](Self::of).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    #[error("the session could not be started")]
    Start(#[source] ApiError),
    #[error("the session's websocket could not be opened")]
    Open { causes: Vec<String>, hint: String },
    #[error("the session did not open within {0:?}")]
    OpenTimeout(Duration),
    /// The gateway's own words; empty for an orderly end.
    #[error("Session Manager ended the session{}", quoted(.output))]
    Closed { output: String, greeted: bool },
    #[error("the session is of no use any more: {0}")]
    Channel(#[from] ChannelError),
    #[error("the session cannot be resumed")]
    Gone(#[source] ApiError),
    #[error("the session's websocket was cut and did not come back within {after:?}: {last}")]
    Lost { after: Duration, last: String, hint: String, greeted: bool },
    #[error("messages of {0} bytes do not pass")]
    MessageTooBig(usize),
    #[error("the lane was closed here")]
    ClosedHere,
}

impl LaneError {
    /// The lane error inside an `io::Error`, if it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What to try next.
    pub fn hint(&self) -> String {
        match self {
            Self::Start(error) | Self::Gone(error) => error.hint(),
            Self::Open { hint, .. } => hint.clone(),
            Self::Closed { greeted: false, .. } | Self::Lost { greeted: false, .. } => {
                "check on the instance that ssm-proxy-agent runs (systemctl status ssm-proxy-agent) and that \
                 the session document reaches its port"
                    .to_owned()
            }
            Self::Closed { output, .. } => closed_hint(output),
            Self::Lost { hint, .. } => hint.clone(),
            Self::Channel(ChannelError::NotPort | ChannelError::Unsupported(_)) => {
                "use --document AWS-StartSSHSession or a document of sessionType Port".to_owned()
            }
            Self::OpenTimeout(_)
            | Self::Channel(ChannelError::HandshakeTimeout(_) | ChannelError::BadHandshake(_)) => {
                "restart the SSM agent on the instance (systemctl restart amazon-ssm-agent)".to_owned()
            }
            Self::Channel(ChannelError::Wedged(_) | ChannelError::ReorderFull(_))
            | Self::MessageTooBig(_)
            | Self::ClosedHere => "nothing to do: a new session is opened in its place".to_owned(),
        }
    }

    /// The causes below `Display`'s line, nearest first.
    pub fn causes(&self) -> Vec<String> {
        match self {
            Self::Start(error) | Self::Gone(error) => {
                std::iter::once(error.to_string()).chain(error.causes()).collect()
            }
            Self::Open { causes, .. } => causes.clone(),
            Self::OpenTimeout(_)
            | Self::Closed { .. }
            | Self::Channel(_)
            | Self::Lost { .. }
            | Self::MessageTooBig(_)
            | Self::ClosedHere => Vec::new(),
        }
    }

    /// 4 for credentials, 5 for a target that is not reachable, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) | Self::Gone(error) => error.exit_code(),
            Self::Open { .. } | Self::OpenTimeout(_) | Self::Closed { .. } | Self::Lost { .. } => 5,
            Self::Channel(_) | Self::MessageTooBig(_) | Self::ClosedHere => 1,
        }
    }
}

impl From<OpenError> for LaneError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Api(error) => Self::Start(error),
            OpenError::Upgrade(error) => Self::Open { causes: chain(&error), hint: error.hint() },
        }
    }
}

impl From<LaneError> for io::Error {
    fn from(error: LaneError) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, error)
    }
}

fn quoted(output: &str) -> String {
    if output.trim().is_empty() { String::new() } else { format!(": {}", output.trim()) }
}

fn closed_hint(output: &str) -> String {
    let lower = output.to_lowercase();
    if lower.contains("not authenticated")
        || lower.contains("createdatachannel")
        || lower.contains("accessdenied")
    {
        return "check the instance's role (AmazonSSMManagedInstanceCore) and its clock".to_owned();
    }
    if lower.contains("connect to") && lower.contains("port") {
        return "check on the instance that ssm-proxy-agent runs (systemctl status ssm-proxy-agent)"
            .to_owned();
    }
    if lower.contains("handshake") {
        return "restart the SSM agent on the instance (systemctl restart amazon-ssm-agent)".to_owned();
    }
    "a new session is opened in its place; if this repeats, look at the account's session preferences \
     (idle timeout, maximum duration)"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_words_are_kept_verbatim_with_a_hint() {
        let output = "\n----------ERROR-------\nUnable to connect to specified port: 742";
        let error = LaneError::Closed { output: output.into(), greeted: true };
        assert!(error.to_string().ends_with(output.trim()));
        assert!(error.hint().contains("ssm-proxy-agent"));
    }

    #[test]
    fn an_end_before_the_greeting_points_at_the_agent() {
        let error = LaneError::Closed { output: String::new(), greeted: false };
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("Session Manager ended the session", 5));
        assert!(error.hint().contains("ssm-proxy-agent"));
    }

    #[test]
    fn a_lane_error_survives_the_io_error_around_it() {
        let error = io::Error::from(LaneError::MessageTooBig(8192));
        assert_eq!(LaneError::of(&error), Some(&LaneError::MessageTooBig(8192)));
        assert_eq!(LaneError::of(&io::Error::other("x")), None);
    }
}
