"""Published examples, and every one of their digits changed. The arithmetic is worked out beside the first of each."""

import string

import pytest

from observability.redaction.check_digits import is_ahv, is_iban, is_nino, is_nir, is_payment_card, is_ssn, is_steuer_id

RIGHT = (
    # every second digit from the right doubled: the 4 gives 8, seven ones give 2 each, the other eight 1 each: 8 + 14 + 8 = 30
    (is_payment_card, "4111111111111111"),
    (is_payment_card, "378282246310005"),
    (is_iban, "DE89370400440532013000"),
    (is_iban, "GB82WEST12345698765432"),
    (is_iban, "FR1420041010050500013M02606"),
    (is_steuer_id, "86095742719"),
    (is_steuer_id, "47036892816"),
    # 2550814168025 = 97 * 26297053278 + 59, and 97 - 59 = 38
    (is_nir, "255081416802538"),
    # odd places 7+6+2+7+7+9+5 = 43, even ones 5+9+1+0+6+8 = 29, times 3 = 87: 43 + 87 = 130
    (is_ahv, "7569217076985"),
)


@pytest.mark.parametrize(("holds", "number"), RIGHT)
def test_a_published_number_holds_and_no_other_last_digit_does(holds, number):
    assert holds(number)
    assert not [digit for digit in string.digits if digit != number[-1] and holds(number[:-1] + digit)]


@pytest.mark.parametrize(("holds", "number"), RIGHT)
def test_one_wrong_digit_anywhere_is_noticed(holds, number):
    for place, digit in enumerate(number):
        if digit.isdigit():
            wrong = number[:place] + str((int(digit) + 1) % 10) + number[place + 1 :]
            assert not holds(wrong), wrong


def test_corsica_counts_as_19_and_18():
    # 1850519123456 leaves 64: the key is 33. 10**6 less, which leaves 27, leaves 64 - 27 = 37: the key is 60
    assert is_nir("185052A12345633") and is_nir("185052B12345660")


def test_cards_of_no_network_and_of_one_digit_only_are_none():
    assert not is_payment_card("9111111111111111")
    assert not is_payment_card("4444444444444444")


def test_social_security_numbers_that_were_never_given_out_are_none():
    assert is_ssn("078051120")
    assert not any(map(is_ssn, ("000121234", "666121234", "900121234", "123001234", "123450000")))


def test_the_prefixes_that_britain_does_not_give_out_are_none():
    assert is_nino("AB123456C") and not is_nino("GB123456C")
