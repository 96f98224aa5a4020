//! Pure: the address of a session's websocket, and whether it is one of AWS's gateways.

use std::fmt;

use hyper::Uri;

/// A StreamUrl, taken apart. It names the session's routing state and may carry a signature, so it
/// is in no `Debug`.
#[derive(Clone)]
pub struct StreamUrl {
    pub uri: Uri,
    pub host: String,
    pub port: u16,
    /// `wss`, not `ws`.
    pub secure: bool,
}

impl StreamUrl {
    /// Takes AWS's gateways over TLS; with `any_host`, which an endpoint override allows, any
    /// websocket.
    pub fn parse(text: &str, any_host: bool) -> Result<Self, StreamUrlError> {
        let uri: Uri = text.parse().map_err(|_| StreamUrlError::NotAUrl)?;
        let secure = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") if any_host => false,
            other => return Err(StreamUrlError::Scheme(other.unwrap_or_default().to_owned())),
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(StreamUrlError::NotAUrl);
        }
        if !any_host && !is_gateway(&host) {
            return Err(StreamUrlError::Host(host));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { uri, host, port, secure })
    }

    /// Whether the query is signed already, so that no header may be.
    pub fn is_signed(&self) -> bool {
        let query = self.uri.query().unwrap_or_default();
        query.split('&').any(|pair| pair.get(..6).is_some_and(|name| name.eq_ignore_ascii_case("X-Amz-")))
    }
}

impl fmt::Debug for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamUrl")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Why a StreamUrl is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamUrlError {
    #[error("the service's StreamUrl is not a URL")]
    NotAUrl,
    #[error("the service's StreamUrl has the scheme {0:?} and not wss")]
    Scheme(String),
    #[error("the service's StreamUrl names {0}, which is not an AWS gateway")]
    Host(String),
}

fn is_gateway(host: &str) -> bool {
    let Some(name) = DOMAINS.iter().find_map(|domain| host.strip_suffix(domain)) else { return false };
    // `ssmmessages.<region>`, `ssmmessages-fips.<region>`, `<id>.ssmmessages.<region>.vpce`.
    name.split('.').any(|label| label == "ssmmessages" || label == "ssmmessages-fips")
}

/// Domains that only AWS can name hosts in.
const DOMAINS: [&str; 10] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
    ".on.aws",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_taken_verbatim() {
        let text = "wss://ssmmessages.us-west-2.amazonaws.com/v1/data-channel/me-0abc?role=publish_subscribe&cell-number=AAE%3D";
        let url = StreamUrl::parse(text, false).unwrap();
        assert_eq!(url.uri.to_string(), text);
        assert_eq!(
            (url.host.as_str(), url.port, url.secure),
            ("ssmmessages.us-west-2.amazonaws.com", 443, true)
        );
        assert!(!url.is_signed());
    }

    #[test]
    fn other_hosts_need_an_endpoint_override() {
        for host in [
            "evil.example",
            "amazonaws.com",
            "ssmmessages.evil.example",
            "s3.amazonaws.com",
            "notamazonaws.com",
            "ssmmessages.us-east-1.amazonaws.com.evil.example",
            "127.0.0.1:1",
            "[::1]:9",
        ] {
            let text = format!("wss://{host}/v1");
            assert!(matches!(StreamUrl::parse(&text, false), Err(StreamUrlError::Host(_))), "{host}");
            assert!(StreamUrl::parse(&text, true).is_ok(), "{host}");
        }
        for host in [
            "ssmmessages-fips.us-gov-west-1.amazonaws.com",
            "SSMMESSAGES.cn-north-1.amazonaws.com.cn",
            "vpce-0a.ssmmessages.eu-west-1.vpce.amazonaws.com",
        ] {
            assert!(StreamUrl::parse(&format!("wss://{host}/v1"), false).is_ok(), "{host}");
        }
    }

    #[test]
    fn plain_websockets_need_an_endpoint_override() {
        let text = "ws://ssmmessages.us-west-2.amazonaws.com/v1";
        assert_eq!(StreamUrl::parse(text, false).unwrap_err(), StreamUrlError::Scheme("ws".into()));
        assert!(!StreamUrl::parse(text, true).unwrap().secure);
        assert!(StreamUrl::parse("http://localhost/", true).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "wss://", "not a url", "wss://user@ssmmessages.a.amazonaws.com/"] {
            assert!(StreamUrl::parse(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn a_signed_query_is_seen_and_the_url_is_in_no_debug() {
        let url = StreamUrl::parse("ws://h/x?role=a&X-Amz-Signature=s3cr3t", true).unwrap();
        assert!(url.is_signed());
        assert!(!format!("{url:?}").contains("s3cr3t"));
    }
}
