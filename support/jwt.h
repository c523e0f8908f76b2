/* jwt: JSON Web Tokens signed with an RSA key (RS256), by libcrypto. */
#pragma once

#include "support/error.h"

#include <stddef.h>

/* "HEADER.CLAIMS.SIGNATURE" of two JSON texts, signed by the private key in @pem (PKCS #8 or #1).
 * *@out is owned. -CB_E_CONFIG when @pem is no RSA key of at least 2048 bits. */
int cb_jwt_rs256(const char *pem, const char *header, const char *claims, char **out,
                 struct cb_error *err);
