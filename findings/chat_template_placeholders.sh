#!/usr/bin/env bash
# transformers 5.23.0: `apply_chat_template` writes `<date>`, `<Decimal>`, `<set>` or `<function>` into the prompt for a
# value that is no plain JSON type, in a message, a tool call or a template variable. Nothing warns. Rows read from
# parquet or pandas hold dates and decimals in tool-call arguments, and Llama 3's templates take a `date_string`, for
# which `datetime.date.today()` is the natural value; a function given as `strftime_now` to fix the day ends in
# "'str' object is not callable". Convert such values to text first.
#
# Seen: Today: <date> / call: {"day": "<date>", "price": "<Decimal>"} / TypeError: 'str' object is not callable
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet transformers==5.23.0 jinja2==3.1.6 2>/dev/null
"$folder/env/bin/python" - <<'PYTHON'
import datetime
import decimal
import warnings

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

warnings.simplefilter("error")  # a warning would end this script
day, price = datetime.date(2026, 12, 1), decimal.Decimal("9.50")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))


def render(template, message, **variables):
    return tokenizer.apply_chat_template(
        [message], chat_template=template, tokenize=False, **variables
    )


user = {"role": "user", "content": "Hi"}
dated = render("Today: {{ date_string }}", user, date_string=day)
call = {"role": "assistant", "content": None, "tool_calls": [{"day": day, "price": price}]}
called = render("call: {{ messages[0].tool_calls[0] | tojson }}", call)
try:
    fixed = render("{{ strftime_now('%d') }}", user, strftime_now=day.strftime)
except TypeError as error:
    fixed = f"TypeError: {error}"
print("transformers", transformers.__version__)
print(dated, called, fixed, sep="\n")
assert dated == "Today: <date>", dated
assert called == 'call: {"day": "<date>", "price": "<Decimal>"}', called
assert fixed == "TypeError: 'str' object is not callable", fixed
PYTHON
