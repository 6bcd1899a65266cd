//! Errors on the wire: `application/problem+json` (RFC 9457), with CloudPal's `kind` and `mend`.

use cloudpal_model::{Kind, Problem};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not carried out (RFC 9457), and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// `urn:cloudpal:problem:` followed by the kind.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The kind in a few words; the same for every problem of a kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, and where.
    pub detail: String,
    /// Stable; programs branch on this.
    #[schema(schema_with = crate::schema::kind)]
    pub kind: Kind,
    /// What to do about it; empty only when nothing can be done.
    pub mend: String,
}

impl ProblemBody {
    pub const CONTENT_TYPE: &'static str = "application/problem+json";

    pub fn new(problem: Problem) -> Self {
        Self::with_status(problem.kind.status(), problem)
    }

    /// For the few problems of HTTP itself whose status says more than the kind's (405, 413, 415).
    pub fn with_status(status: u16, problem: Problem) -> Self {
        ProblemBody {
            type_uri: format!("urn:cloudpal:problem:{}", problem.kind.text()),
            title: problem.kind.title().to_owned(),
            status,
            detail: problem.what,
            kind: problem.kind,
            mend: problem.mend,
        }
    }
}

impl From<ProblemBody> for Problem {
    fn from(body: ProblemBody) -> Problem {
        Problem::new(body.kind, body.detail, body.mend)
    }
}

/// How a kind looks in HTTP.
trait KindOnTheWire {
    fn status(self) -> u16;
    fn text(self) -> &'static str;
    fn title(self) -> &'static str;
}

impl KindOnTheWire for Kind {
    fn status(self) -> u16 {
        match self {
            Kind::Internal => 500,
            Kind::Invalid => 400,
            Kind::NotFound => 404,
            Kind::Taken | Kind::Refused => 409,
            Kind::BadImage => 422,
            Kind::HostLacks => 501,
            Kind::DiskFull => 507,
            Kind::Unavailable => 503,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Kind::Internal => "internal",
            Kind::Invalid => "invalid",
            Kind::NotFound => "not_found",
            Kind::Taken => "taken",
            Kind::Refused => "refused",
            Kind::BadImage => "bad_image",
            Kind::HostLacks => "host_lacks",
            Kind::DiskFull => "disk_full",
            Kind::Unavailable => "unavailable",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Kind::Internal => "A fault of CloudPal's own",
            Kind::Invalid => "The request is wrong",
            Kind::NotFound => "There is no such thing",
            Kind::Taken => "It is taken",
            Kind::Refused => "Not allowed in the present state",
            Kind::BadImage => "The image cannot be run or trusted",
            Kind::HostLacks => "The host lacks something",
            Kind::DiskFull => "The disk is full",
            Kind::Unavailable => "The daemon cannot be reached",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_described_kind_is_a_kind_and_is_written_the_same() {
        for text in crate::schema::KINDS {
            let kind: Kind = serde_json::from_value(text.into()).unwrap();
            assert_eq!(kind.text(), text);
            let problem = Problem::new(kind, "what", "mend");
            let body = ProblemBody::new(problem.clone());
            let json = serde_json::to_value(&body).unwrap();
            assert_eq!(json["type"], format!("urn:cloudpal:problem:{text}"));
            assert_eq!(json["kind"], text);
            assert!(body.status >= 400);
            assert_eq!(Problem::from(body), problem);
        }
    }
}
