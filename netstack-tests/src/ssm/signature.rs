//! Pure: recomputes the signature of a request (AWS Signature Version 4 in the Authorization header).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;

/// An HTTP request whose signature is to be checked.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    pub(crate) path_and_query: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) body: &'a [u8],
}

/// Who may call, and until when.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) session_token: Option<String>,
    pub(crate) expired: bool,
}

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SignatureFault {
    /// Without an Authorization header.
    Missing,
    /// A key or a session token the service does not know: the user's fault.
    UnknownKey,
    /// Good once: the user's fault.
    Expired,
    /// The client's fault.
    Wrong(String),
}

/// Recomputes a request's signature (AWS Signature Version 4 in the Authorization header).
pub(crate) fn check_signature(
    request: &Signed<'_>,
    service: &str,
    region: &str,
    accounts: &[Account],
    now: SystemTime,
) -> Result<(), SignatureFault> {
    let wrong = |text: String| SignatureFault::Wrong(text);
    let authorization = request.header("authorization").ok_or(SignatureFault::Missing)?;
    let parts = Authorization::parse(authorization).ok_or_else(|| {
        wrong("the Authorization header is not AWS4-HMAC-SHA256 with its three parts".to_owned())
    })?;
    let account = accounts
        .iter()
        .find(|account| account.access_key == parts.access_key)
        .ok_or(SignatureFault::UnknownKey)?;
    if account.session_token.as_deref() != request.header("x-amz-security-token") {
        return Err(SignatureFault::UnknownKey);
    }
    let date = request.header("x-amz-date").ok_or_else(|| wrong("there is no X-Amz-Date".to_owned()))?;
    let time = parse_date(date).ok_or_else(|| wrong(format!("X-Amz-Date {date:?} is no date")))?;
    let apart = now.duration_since(time).or_else(|_| time.duration_since(now)).unwrap_or_default();
    if apart > Duration::from_secs(300) {
        return Err(wrong(format!("the request was signed {} seconds from now", apart.as_secs())));
    }
    let scope = format!("{}/{region}/{service}/aws4_request", &date[..8]);
    if parts.scope != scope {
        return Err(wrong(format!("the credential scope is {}, not {scope}", parts.scope)));
    }
    request.check_signed_headers(&parts.signed_headers).map_err(wrong)?;
    let signature =
        request.signature(&parts.signed_headers, account, service, region, time).map_err(wrong)?;
    if signature != parts.signature {
        return Err(wrong("the signature does not fit the request".to_owned()));
    }
    if account.expired { Err(SignatureFault::Expired) } else { Ok(()) }
}

impl Signed<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    fn check_signed_headers(&self, signed: &[&str]) -> Result<(), String> {
        if !signed.is_sorted() {
            return Err("SignedHeaders is not sorted".to_owned());
        }
        let must = |name: &str| name == "host" || name.starts_with("x-amz-");
        for (name, _) in &self.headers {
            let name = name.to_ascii_lowercase();
            if must(&name) && !signed.contains(&name.as_str()) {
                return Err(format!("the header {name} is not signed"));
            }
        }
        match signed.iter().find(|name| self.header(name).is_none()) {
            Some(name) => Err(format!("the signed header {name} is not there")),
            None => Ok(()),
        }
    }

    fn signature(
        &self,
        signed: &[&str],
        account: &Account,
        service: &str,
        region: &str,
        time: SystemTime,
    ) -> Result<String, String> {
        let identity = Credentials::new(
            &account.access_key,
            &account.secret_key,
            account.session_token.clone(),
            None,
            "sim",
        )
        .into();
        let mut settings = SigningSettings::default();
        settings.excluded_headers = None;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(service)
            .time(time)
            .settings(settings)
            .build()
            .map_err(|error| error.to_string())?
            .into();
        // The signer adds these two itself.
        let added = ["x-amz-date", "x-amz-security-token"];
        let headers = self.headers.iter().copied().filter(|(name, _)| {
            let name = name.to_ascii_lowercase();
            signed.contains(&name.as_str()) && !added.contains(&name.as_str())
        });
        let host = self.header("host").unwrap_or("localhost");
        let uri = format!("http://{host}{}", self.path_and_query);
        let request = SignableRequest::new(self.method, uri, headers, SignableBody::Bytes(self.body))
            .map_err(|error| error.to_string())?;
        let output = sign(request, &params).map_err(|error| error.to_string())?;
        Ok(output.signature().to_owned())
    }
}

struct Authorization<'a> {
    access_key: &'a str,
    scope: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let rest = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let part =
            |name: &str| rest.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        let (access_key, scope) = part("Credential")?.split_once('/')?;
        let signed_headers = part("SignedHeaders")?.split(';').collect();
        Some(Self { access_key, scope, signed_headers, signature: part("Signature")? })
    }
}

/// Reads `20250102T030405Z`.
fn parse_date(text: &str) -> Option<SystemTime> {
    let digits = text.strip_suffix('Z')?.replacen('T', "", 1);
    if digits.len() != 14 || !digits.is_ascii() {
        return None;
    }
    let number = |from: usize, to: usize| digits[from..to].parse::<u64>().ok();
    let days = days_from_civil(number(0, 4)?, number(4, 6)?, number(6, 8)?)?;
    let seconds = days * 86_400 + number(8, 10)? * 3600 + number(10, 12)? * 60 + number(12, 14)?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Days since 1970-01-01, for years from 1970 on.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March, so that the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    (year * 365 + leap_days + (month * 153 + 2) / 5 + day).checked_sub(EPOCH_DAYS)
}

/// What the sum of [`days_from_civil`] is for 1970-01-01.
const EPOCH_DAYS: u64 = 719_469;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_from_the_basic_format() {
        let seconds = |text| parse_date(text).unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds("19700101T000000Z"), 0);
        assert_eq!(seconds("20231114T221320Z"), 1_700_000_000);
        assert_eq!(seconds("20240229T000000Z"), 1_709_164_800);
        assert_eq!(parse_date("2024"), None);
    }
}
