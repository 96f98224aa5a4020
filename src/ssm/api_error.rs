//! Pure: what can go wrong in a call to AWS, in the user's words, with the next command to try.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};

use super::connect::ConnectError;
use super::key_source::KeySource;

/// Why a call to AWS failed. `Display` is one line; [`causes`](Self::causes) and
/// [`hint`](Self::hint) say the rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("no AWS region is set")]
    NoRegion { hint: String },
    #[error("there are no usable AWS credentials for profile {profile}")]
    NoCredentials { profile: String, detail: String, hint: String },
    #[error("{what}")]
    Expired { what: String, detail: String, hint: String },
    #[error("AWS does not allow {action}")]
    AccessDenied { action: &'static str, message: String },
    #[error("{target} is not connected to Session Manager")]
    TargetNotConnected { target: String, region: String },
    #[error("there is no such {what}")]
    NotFound { what: String, message: String },
    #[error("the session document {document} cannot be used")]
    InvalidDocument { document: String, message: String },
    #[error("the session has ended and cannot be resumed")]
    SessionGone { message: String },
    #[error("AWS is throttling {action}")]
    Throttled { action: &'static str },
    #[error("the endpoint for {action} is not reachable")]
    Unreachable { action: &'static str, causes: Vec<String>, hint: String },
    #[error("no answer to {action} in time")]
    Timeout { action: &'static str },
    #[error("the answer to {action} is not usable: {message}")]
    BadAnswer { action: &'static str, message: String },
    #[error("{action} failed")]
    Other { action: &'static str, message: String },
}

impl ApiError {
    /// The causes, nearest first.
    pub fn causes(&self) -> Vec<String> {
        match self {
            Self::NoRegion { .. }
            | Self::Timeout { .. }
            | Self::Throttled { .. }
            | Self::BadAnswer { .. } => Vec::new(),
            Self::NoCredentials { detail, .. } | Self::Expired { detail, .. } => vec![detail.clone()],
            Self::AccessDenied { message, .. }
            | Self::NotFound { message, .. }
            | Self::InvalidDocument { message, .. }
            | Self::SessionGone { message }
            | Self::Other { message, .. } => vec![message.clone()],
            Self::TargetNotConnected { region, .. } => vec![
                "most likely first: the instance is stopped".to_owned(),
                format!("it is in another region or account than the profile's ({region})"),
                "the SSM agent is not running on it, or it has just booted (wait a minute)".to_owned(),
                "its instance profile lacks AmazonSSMManagedInstanceCore".to_owned(),
                "it cannot reach the ssm, ssmmessages and ec2messages endpoints".to_owned(),
            ],
            Self::Unreachable { causes, .. } => causes.clone(),
        }
    }

    /// What to try next.
    pub fn hint(&self) -> String {
        match self {
            Self::NoRegion { hint }
            | Self::NoCredentials { hint, .. }
            | Self::Expired { hint, .. }
            | Self::Unreachable { hint, .. } => hint.clone(),
            Self::AccessDenied { action, .. } => format!(
                "ask for an IAM policy that allows {action} (examples/iam/caller-policy.json), or choose another --profile"
            ),
            Self::TargetNotConnected { target, region } => format!(
                "aws ssm describe-instance-information --region {region} --filters Key=InstanceIds,Values={target}"
            ),
            Self::NotFound { .. } => "check the name, --region and --profile".to_owned(),
            Self::InvalidDocument { document, .. } => format!(
                "aws ssm describe-document --name {document}, or leave --document out to use AWS-StartSSHSession"
            ),
            Self::SessionGone { .. } => "nothing to do: a new session is opened in its place".to_owned(),
            Self::Throttled { .. } => "wait a minute and try again".to_owned(),
            Self::Timeout { .. } => {
                "check the network; behind a company proxy set HTTPS_PROXY=http://proxy:port".to_owned()
            }
            Self::BadAnswer { .. } => "check AWS_ENDPOINT_URL and the profile's endpoint_url".to_owned(),
            Self::Other { .. } => "try again with --debug for the whole exchange".to_owned(),
        }
    }

    /// 4 for credentials, 5 for a target that is not reachable, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoRegion { .. }
            | Self::NoCredentials { .. }
            | Self::Expired { .. }
            | Self::AccessDenied { .. } => 4,
            Self::TargetNotConnected { .. }
            | Self::NotFound { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. } => 5,
            Self::InvalidDocument { .. }
            | Self::SessionGone { .. }
            | Self::Throttled { .. }
            | Self::BadAnswer { .. }
            | Self::Other { .. } => 1,
        }
    }

    /// Whether the same call may succeed a little later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Unreachable { .. } | Self::Timeout { .. } | Self::Other { .. } => {
                true
            }
            // Someone may log in again meanwhile, and a booting instance comes.
            Self::NoCredentials { .. } | Self::Expired { .. } | Self::TargetNotConnected { .. } => true,
            Self::NoRegion { .. }
            | Self::AccessDenied { .. }
            | Self::NotFound { .. }
            | Self::InvalidDocument { .. }
            | Self::SessionGone { .. }
            | Self::BadAnswer { .. } => false,
        }
    }
}

/// What a call was about, for its errors.
#[derive(Clone, Debug)]
pub(super) struct Subject<'a> {
    pub(super) action: &'static str,
    /// Instance, session or empty.
    pub(super) target: &'a str,
    pub(super) document: &'a str,
    pub(super) surroundings: &'a Surroundings,
}

/// What errors say about where the call came from.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) profile: String,
    pub(super) region: String,
    /// Those of the AWS files.
    pub(super) profiles: Vec<String>,
    /// Those of them that want an MFA code.
    pub(super) with_mfa: Vec<String>,
    pub(super) keys: KeySource,
}

impl Surroundings {
    pub(super) fn no_region(&self) -> ApiError {
        let hint = "pass --region, e.g. --region eu-west-1, or set AWS_REGION";
        ApiError::NoRegion { hint: hint.to_owned() }
    }

    pub(super) fn credentials(&self, error: &(dyn Error + 'static)) -> ApiError {
        let (profile, mut detail) = (self.profile.clone(), chain(error).join(": "));
        let lower = detail.to_lowercase();
        let mut words = lower.split(|c: char| !c.is_alphanumeric());
        let of_sign_on = words.any(|word| word.starts_with("sso"));
        if of_sign_on && !matches!(self.keys, KeySource::SignOn(_)) {
            return expired(&KeySource::SignOn(profile.clone()), &profile, detail);
        }
        if of_sign_on || lower.contains("expired") {
            return expired(&self.keys, &profile, detail);
        }
        if self.with_mfa.contains(&profile) {
            let detail =
                format!("profile {profile} wants an MFA code, which only the AWS CLI can ask for: {detail}");
            let hint = format!(
                "eval \"$(aws configure export-credentials --profile {profile} --format env)\" and start again without --profile"
            );
            return ApiError::NoCredentials { profile, detail, hint };
        }
        let unknown = !self.profiles.is_empty() && !self.profiles.contains(&profile);
        if lower.contains("no credentials found in chain") || lower.contains("imds") {
            // What each provider of the chain says fills a screen, and on a laptop the last ones mislead.
            detail = if unknown {
                format!("the AWS files have no profile {profile}; they have {}", self.profiles.join(", "))
            } else {
                format!("neither the environment nor profile {profile} of the AWS files holds any")
            };
        }
        let hint = if unknown {
            format!(
                "name one that is there with --profile, or make it: aws configure sso --profile {profile}"
            )
        } else {
            format!("aws configure sso --profile {profile}, or name another one with --profile")
        };
        ApiError::NoCredentials { profile, detail, hint }
    }
}

fn expired(keys: &KeySource, profile: &str, detail: String) -> ApiError {
    ApiError::Expired { what: keys.expired(profile), detail, hint: keys.renewal(profile) }
}

/// The error of a call, in the user's words.
pub(super) fn classify<E, R>(subject: &Subject<'_>, error: &SdkError<E, R>) -> ApiError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let action = subject.action;
    if let Some(credentials) = find::<CredentialsError>(error) {
        return subject.surroundings.credentials(credentials);
    }
    if let Some(connect) = find::<ConnectError>(error) {
        return ApiError::Unreachable { action, causes: chain(connect), hint: connect.hint() };
    }
    match error {
        SdkError::TimeoutError(_) => ApiError::Timeout { action },
        SdkError::DispatchFailure(failure) if failure.is_timeout() => ApiError::Timeout { action },
        SdkError::ServiceError(service) => {
            let meta = service.err().meta();
            let message = meta.message().unwrap_or("no reason given").to_owned();
            of_service(subject, meta.code().unwrap_or_default(), message)
        }
        SdkError::ResponseError(_) => ApiError::BadAnswer { action, message: chain(error).join(": ") },
        // The SDK's enum may grow.
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) | _ => {
            ApiError::Other { action, message: chain(error).join(": ") }
        }
    }
}

fn of_service(subject: &Subject<'_>, code: &str, message: String) -> ApiError {
    let Subject { action, target, document, surroundings } = subject.clone();
    let profile = surroundings.profile.clone();
    match code {
        "TargetNotConnected" => {
            ApiError::TargetNotConnected { target: target.to_owned(), region: surroundings.region.clone() }
        }
        "InvalidDocument" | "InvalidDocumentVersion" => {
            ApiError::InvalidDocument { document: document.to_owned(), message }
        }
        "DoesNotExistException" => ApiError::SessionGone { message },
        "InvalidInstanceId" | "InvalidTarget" => {
            ApiError::NotFound { what: format!("target as {target}"), message }
        }
        "AccessDeniedException" | "AccessDenied" => ApiError::AccessDenied { action, message },
        "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" => {
            expired(&surroundings.keys, &profile, message)
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "SignatureDoesNotMatch" => {
            let hint =
                format!("aws sts get-caller-identity --profile {profile} shows what these keys are worth");
            ApiError::NoCredentials { profile, detail: message, hint }
        }
        "ThrottlingException" | "Throttling" | "RequestLimitExceeded" | "TooManyRequestsException" => {
            ApiError::Throttled { action }
        }
        "" => ApiError::Other { action, message },
        code => ApiError::Other { action, message: format!("{code}: {message}") },
    }
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| error.downcast_ref::<T>())
}

/// The texts of an error and its sources, without those that only repeat the one before.
pub(super) fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let texts = std::iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string);
    let mut chain: Vec<String> = Vec::new();
    for text in texts {
        if chain.last().is_none_or(|last| !last.contains(&text)) {
            chain.push(text);
        }
    }
    chain
}

#[cfg(test)]
mod tests {
    use aws_sdk_ssm::error::ErrorMetadata;
    use aws_sdk_ssm::operation::start_session::StartSessionError;

    use super::*;

    #[test]
    fn an_offline_target_has_ranked_causes_and_exit_code_5() {
        let error = service("TargetNotConnected", "i-0 is not connected.");
        let wanted = ApiError::TargetNotConnected { target: "i-0".into(), region: "eu-west-1".into() };
        assert_eq!((&error, error.exit_code()), (&wanted, 5));
        assert!(error.causes()[0].contains("stopped"));
        assert!(error.hint().contains("--region eu-west-1") && error.hint().contains("i-0"));
    }

    #[test]
    fn expired_tokens_name_what_renews_them() {
        for (keys, words) in [
            (
                KeySource::SignOn("dev".into()),
                ["the AWS login of profile dev", "aws sso login --profile dev"],
            ),
            (KeySource::Environment, ["the AWS keys in the environment have expired", "AWS_SESSION_TOKEN"]),
            (
                KeySource::Profile("dev".into()),
                ["the AWS keys of profile dev have", "[dev] in ~/.aws/credentials"],
            ),
        ] {
            let surroundings = Surroundings { keys, ..surroundings() };
            for code in ["ExpiredTokenException", "ExpiredToken", "RequestExpired"] {
                let told = "The security token included in the request is expired";
                let error = service_in(&surroundings, code, told);
                assert_eq!((error.exit_code(), error.causes()), (4, vec![told.to_owned()]), "{code}");
                let [what, hint] = words;
                assert!(error.to_string().contains(what) && error.hint().contains(hint), "{error:?}");
            }
        }
    }

    #[test]
    fn every_code_has_its_class() {
        for (code, exit) in [
            ("AccessDeniedException", 4),
            ("UnrecognizedClientException", 4),
            ("InvalidSignatureException", 4),
            ("InvalidDocument", 1),
            ("ThrottlingException", 1),
            ("InternalServerError", 1),
            ("", 1),
            ("InvalidInstanceId", 5),
        ] {
            let error = service(code, "why");
            assert_eq!(error.exit_code(), exit, "{code}");
            assert!(!error.hint().is_empty(), "{code}");
        }
        assert!(service("InternalServerError", "why").causes()[0].contains("InternalServerError: why"));
    }

    #[test]
    fn an_sso_session_without_token_asks_for_a_login() {
        let source = std::io::Error::other("the SSO token has expired and cannot be refreshed");
        let error =
            SdkError::<StartSessionError, ()>::construction_failure(CredentialsError::provider_error(source));
        let error = classify(&subject(&surroundings()), &error);
        assert!(matches!(error, ApiError::Expired { .. }), "{error:?}");
    }

    #[test]
    fn a_word_that_only_holds_sso_asks_for_no_login() {
        let error = surroundings().credentials(&std::io::Error::other("no keys associated with it"));
        assert!(matches!(error, ApiError::NoCredentials { .. }), "{error:?}");
    }

    #[test]
    fn an_unknown_profile_is_told_with_those_that_are_known() {
        let known = |profiles: &[&str]| Surroundings {
            profiles: profiles.iter().map(ToString::to_string).collect(),
            ..surroundings()
        };
        let error = CredentialsError::not_loaded("no credentials found in chain.\nAttempted: ...");

        let unknown = known(&["default", "prod"]).credentials(&error);
        assert_eq!(unknown.exit_code(), 4);
        assert_eq!(unknown.causes(), ["the AWS files have no profile dev; they have default, prod"]);

        let empty = known(&["dev"]).credentials(&error);
        assert_eq!(empty.causes(), ["neither the environment nor profile dev of the AWS files holds any"]);
    }

    #[test]
    fn a_profile_with_mfa_names_the_command_that_asks_for_the_code() {
        let surroundings = Surroundings { with_mfa: vec!["dev".into()], ..surroundings() };
        let error = surroundings.credentials(&std::io::Error::other("AccessDenied"));
        assert!(error.causes()[0].contains("MFA code"), "{error:?}");
        assert!(error.hint().contains("export-credentials --profile dev"));
    }

    #[test]
    fn an_unreachable_endpoint_tells_the_connection_error() {
        let source = std::io::Error::other("certificate unknown issuer");
        let connect = ConnectError::Tls { host: "ssm.eu-west-1.amazonaws.com".into(), source };
        let error = SdkError::<StartSessionError, ()>::construction_failure(connect);
        let error = classify(&subject(&surroundings()), &error);
        assert_eq!(error.causes().len(), 2, "{error:?}");
        assert!(error.hint().contains("AWS_CA_BUNDLE"));
        assert!(error.is_transient());
    }

    fn service(code: &str, message: &str) -> ApiError {
        service_in(&surroundings(), code, message)
    }

    fn service_in(surroundings: &Surroundings, code: &str, message: &str) -> ApiError {
        let meta = ErrorMetadata::builder().code(code).message(message).build();
        let error = SdkError::<_, ()>::service_error(StartSessionError::generic(meta), ());
        classify(&subject(surroundings), &error)
    }

    fn surroundings() -> Surroundings {
        Surroundings { profile: "dev".into(), region: "eu-west-1".into(), ..Surroundings::default() }
    }

    fn subject(surroundings: &Surroundings) -> Subject<'_> {
        Subject { action: "ssm:StartSession", target: "i-0", document: "AWS-StartSSHSession", surroundings }
    }
}
