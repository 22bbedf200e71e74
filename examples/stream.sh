#!/bin/sh
# A streamed completion with nothing but curl.
curl -sN "${OCTAVO_URL:-http://127.0.0.1:8000}/v1/completions" \
    -H 'Content-Type: application/json' \
    -d '{"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "stream": true}'
