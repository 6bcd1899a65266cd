//! Descriptions of types that live in `model`, which knows nothing of OpenAPI.

use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};

/// Every `kind` of a problem, as [`cloudpal_model::Kind`] writes them.
pub const KINDS: [&str; 9] = [
    "internal",
    "invalid",
    "not_found",
    "taken",
    "refused",
    "bad_image",
    "host_lacks",
    "disk_full",
    "unavailable",
];

pub fn kind() -> Object {
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some(KINDS)).build()
}

/// One DNS label.
pub fn name() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .pattern(Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))
        .build()
}
