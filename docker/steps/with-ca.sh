#!/bin/sh
# Runs a command that trusts the certificate authorities of the build secret `ca`, where the build was given one.
if [ -s /run/secrets/ca ]; then
    export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca
fi
exec "$@"
